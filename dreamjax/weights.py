"""Weights files: safetensors with named tensors and, in the metadata, what they belong to.

The metadata's `format` says what a file is, its other entries how the network is laid out; whoever
wrote it turns those back into a network, whose shapes the tensors must then fit, each exactly once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_bytes

from dreamjax.errors import UserError
from dreamjax.workdir import resolved, write_bytes

# Formats of ours and the prior that reads each.
READERS = {"dreamjax-toybox-1": "toybox", "dreamjax-classes-1": "classes"}


class Weights(NamedTuple):
    """What a file holds: the metadata, and tensors by dotted name."""

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]


def save(
    path: str | Path, metadata: Mapping[str, str], params: PyTree, dtype: type = np.float16
) -> None:
    """Write parameters, cast to `dtype`, as one file, at once or not at all.

    Raises UserError for parameters that `dtype` cannot hold, and where nothing can be written.
    """
    with np.errstate(over="ignore"):
        flat = flatten_dict(params, sep=".").items()
        tensors = {name: np.asarray(value, dtype) for name, value in flat}
    check_finite(path, tensors)
    write_bytes(resolved(path), save_bytes(tensors, dict(metadata)))


def read(path: str | Path, format: str | None) -> Weights:
    """Read a file of a `format`, None for one that others wrote.

    Raises UserError where it is missing, damaged, or of another format.
    """
    with open_file(path) as file:
        metadata = _metadata(path, file, format)
        return Weights(metadata, {name: file.get_tensor(name) for name in file.keys()})


def read_metadata(path: str | Path, format: str | None) -> dict[str, str]:
    """The metadata alone of a file of a `format`; raises UserError as `read` does."""
    with open_file(path) as file:
        return _metadata(path, file, format)


def _metadata(path: str | Path, file, format: str | None) -> dict[str, str]:
    metadata = file.metadata() or {}
    found = metadata.get("format")
    if format is not None and found != format:
        other = f" (read it as prior={READERS[found]})" if found in READERS else ""
        raise UserError(f"{path} is of format {found!r}, not {format!r}{other}")
    return metadata


def open_file(path: str | Path):
    """An open safetensors file, of NumPy arrays; raises UserError where it cannot be read."""
    path = resolved(path)
    try:
        return safe_open(str(path), framework="numpy")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read weights {path}: {str(error).splitlines()[0]}") from error


def fit(path: str | Path, tensors: Mapping[str, np.ndarray], wanted: PyTree) -> PyTree:
    """The tensors as float32 parameters of the tree of shapes `wanted` (`jax.eval_shape`'s).

    Raises UserError, naming up to four of them, for tensors that are missing, left over, of another
    shape or not finite.
    """
    flat = cast(dict[str, Any], flatten_dict(wanted, sep="."))
    shapes = {name: value.shape for name, value in flat.items()}
    found = {name: value.shape for name, value in tensors.items()}
    if wrong := mismatches(shapes, found):
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{path} does not fit the network: {'; '.join(wrong[:4])}{more}")
    check_finite(path, tensors)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()}
    return unflatten_dict(params, sep=".")


def mismatches(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is missing, left over or of another shape, each tensor by name in a few words."""
    return [
        *(f"missing {name}" for name in wanted if name not in found),
        *(f"left over {name}" for name in found if name not in wanted),
        *(
            f"{name} is {list(found[name])}, not {list(shape)}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ),
    ]


def check_finite(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise UserError with the first tensor that is not finite."""
    wrong = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if wrong:
        raise UserError(f"weights {path}: {wrong[0]} is not finite in {tensors[wrong[0]].dtype}")


def tuples(fields: Mapping) -> dict:
    """A JSON object's fields with its lists as tuples, as dataclasses have them."""

    def as_tuple(value):
        return tuple(map(as_tuple, value)) if isinstance(value, list) else value

    return {key: as_tuple(value) for key, value in fields.items()}
