"""Model folders as Hugging Face publishes them (the diffusers layout), read into Flax parameters.

A model is a folder, or the repository id that one is fetched from: `model_index.json` at its root
and, in a subfolder for each part, `config.json` with tensors in safetensors, in one file or in
several with an index. Our modules have the published names, list numbers as a suffix, so that one
rule names every tensor:

    ours    down_blocks_0.resnets_1.conv1.kernel  [H, W, I, O]
    theirs  down_blocks.0.resnets.1.conv1.weight  [O, I, H, W]

Tensors are read one at a time, and nothing is ever unpickled.
"""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from dreamjax import weights
from dreamjax.errors import UserError
from dreamjax.settings import short

T = TypeVar("T")

# What is fetched; flax, onnx, openvino and pickled twins stay where they are.
WANTED = ("*.json", "*.txt", "*/spiece.model")
PLAIN = ("linear_", "wi_")  # modules whose published names end in such a number themselves
LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
LARGEST_JSON = 64 << 20  # bytes; a tokenizer's is a few million
# Names of the VAE's attention before 2023.
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find(model: str, parts: Sequence[str]) -> Path:
    """The folder of a model: itself, or that of a repository id, fetched once and kept.

    `parts` are the subfolders whose tensors are fetched, "" being the root; in half precision where
    it is offered. Only an id uses the network; where that fails, or the repository is gone, what
    was fetched before is taken. Raises UserError for what is neither a folder nor an id, and where
    the repository cannot be had.
    """
    folder = weights.resolved(model)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise UserError(
            f"weights is {model[:200]!r}: neither a folder nor a repository id (OWNER/NAME)"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        names = huggingface_hub.list_repo_files(model)
    except Exception as network:  # of whichever transport the hub's library uses
        try:
            return Path(huggingface_hub.snapshot_download(model, local_files_only=True))
        except LocalEntryNotFoundError as error:
            reason = " ".join(str(network).split())
            raise UserError(
                f"{model} has not been fetched before, and cannot be now: {reason}"
            ) from error
    patterns = [*WANTED, *(_chosen(model, names, part) for part in parts)]
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"cannot fetch {model}: {str(error).splitlines()[0]}") from error


def _chosen(model: str, names: Sequence[str], part: str) -> str:
    """A pattern for the tensors of a part among a repository's file names."""
    prefix = f"{part}/" if part else ""
    here = [n for n in names if n.startswith(prefix) and "/" not in n[len(prefix) :]]
    tensors = [n for n in here if n.endswith(".safetensors")]
    if not tensors:
        raise UserError(_no_tensors(f"{model}/{part}".rstrip("/"), here))
    half = [n for n in tensors if ".fp16" in n]
    stem = re.split(r"[.]fp16|-0|[.]safetensors", Path(half[0] if half else tensors[0]).name)[0]
    return f"{prefix}{stem}{'.fp16' if half else ''}*.safetensors"


def _no_tensors(where: str | Path, names: Sequence[str]) -> str:
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return (
            f"{where} has its weights only as {Path(pickled[0]).name}, a pickle, which may run any "
            "code when it is read: convert it to safetensors first"
        )
    return f"{where} holds no .safetensors file"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; raises UserError where there is none, or too large or deep a one."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is no file")
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MB")
        return weights.parse_object(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"cannot read {path}: {reason}") from error


def pipeline_of(folder: Path, *known: str) -> str:
    """The class that a folder says its model is of, one of `known`; raises UserError for others."""
    kind = read_json(folder / "model_index.json").get("_class_name", "model of no kind")
    if isinstance(kind, str) and kind in known:
        return kind
    shown = kind if isinstance(kind, str) and len(kind) < 80 else short(kind)
    article = "an" if known[0][0] in "AEIOU" else "a"
    raise UserError(f"{folder} is a {shown}, not {article} {' or '.join(known)}")


def read_config(folder: Path, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of a part's config.json; raises UserError, naming the part."""
    plain = read_json(folder / "config.json")
    try:
        return read(plain)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def load(folder: Path, wanted: PyTree, strip: str = "", drop: Collection[str] = ()) -> PyTree:
    """The tensors of a part as float32 parameters of the tree of shapes `wanted`.

    `strip` is a prefix that names in the files may have, `drop` names that are not wanted. Every
    parameter is matched once; raises UserError naming what is missing, left over, of another shape,
    no real numbers or not finite, and for files that are missing or damaged.
    """
    return reader(folder, wanted, strip, drop)("")


def reader(
    folder: Path, wanted: PyTree, strip: str = "", drop: Collection[str] = ()
) -> Callable[[str], PyTree]:
    """`read(module)`: the parameters below a module of ours, as "encoder.block_3", "" for all.

    For networks too large to be held whole: names and shapes are compared here, all of them, and
    tensors read when they are asked for. Arguments and errors are those of `load`.
    """
    files = _files(folder)
    where = {}
    for file, handle in files.items():
        for name in handle.keys():
            ours = _canonical(name, strip)
            if ours is None or name in drop:
                continue
            if ours in where:
                twice = f"{name[:100]} is there twice"
                raise UserError(f"{folder}: {twice}, in {where[ours][0]} and {file}")
            where[ours] = (file, name)
    flat = cast(dict[str, Any], flatten_dict(wanted, sep="."))
    names = {published_name(name): name for name in flat}
    shapes = {name: published_shape(ours, flat[ours].shape) for name, ours in names.items()}
    found = {
        name: tuple(files[file].get_slice(original).get_shape())
        for name, (file, original) in where.items()
    }
    if wrong := weights.mismatches(shapes, found):
        raise UserError(f"{folder} does not fit the network its config describes: {wrong}")

    def read(module: str) -> PyTree:
        prefix, params = f"{module}." if module else "", {}
        for name, (file, original) in where.items():
            if (ours := names[name]).startswith(prefix):
                value = weights.tensor(folder / file, files[file], original)
                params[ours.removeprefix(prefix)] = jnp.asarray(our_layout(ours, value))
        return unflatten_dict(params, sep=".")

    return read


def _files(folder: Path) -> dict[str, Any]:
    """The open files of a part: full precision before fp16, an index before a single file."""
    try:
        present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    if not present:
        raise UserError(f"there is no folder {folder}, or nothing in it")
    for variant in ("", r"\.fp16"):
        index = [n for n in present if re.fullmatch(rf"\w+\.safetensors\.index{variant}\.json", n)]
        for name in index:
            shards = _shards(folder / name)
            missing = [shard for shard in shards if shard not in present]
            if missing == shards:  # an index alone, fetched with the configs
                continue
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise UserError(
                    f"{folder / name} names {missing[0][:100]}{more}, which is not there"
                )
            return {shard: weights.open_file(folder / shard) for shard in shards}
        whole = [n for n in present if re.fullmatch(rf"\w+{variant}\.safetensors", n)]
        if len(whole) > 1:
            raise UserError(f"{folder} holds several models: {', '.join(whole[:4])}")
        if whole:
            return {whole[0]: weights.open_file(folder / whole[0])}
    raise UserError(_no_tensors(folder, present))


def _shards(index: Path) -> list[str]:
    """The names of the files over which an index spreads the tensors."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        right = "expected the name of a file for each tensor"
        raise UserError(f"{index}: weight_map is {short(where)}: {right}")
    return sorted(set(where.values()))


def _canonical(name: str, strip: str) -> str | None:
    """A tensor's name today, None for one that is no parameter."""
    if name.endswith(".position_ids"):
        return None
    parts = name.removeprefix(strip).split(".")
    if len(parts) > 1 and parts[-2] in FORMER:
        parts[-2] = FORMER[parts[-2]]
    return ".".join(parts)


def published_name(name: str) -> str:
    """The published name of our parameter `name`."""
    *modules, leaf = name.split(".")
    dotted = [
        module if module.startswith(PLAIN) else re.sub(r"_(\d+)$", r".\1", module)
        for module in modules
    ]
    return ".".join([*dotted, LEAF.get(leaf, leaf)])


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that our parameter `name` has in the files."""
    if not name.endswith(".kernel"):
        return tuple(shape)
    return (*shape[:-3:-1], *shape[:-2])


def our_layout(name: str, value: np.ndarray) -> np.ndarray:
    """Undo `published_shape`: [O, I, ...] to [..., I, O] for kernels."""
    if not name.endswith(".kernel"):
        return value
    return np.moveaxis(value, (0, 1), (-1, -2))
