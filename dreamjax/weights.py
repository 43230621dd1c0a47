"""Weights files: safetensors with named tensors and, in the metadata, what they belong to.

The metadata's `format` says what a file is, its other entries how the network is laid out; whoever
wrote it turns those back into a network, whose shapes the tensors must then fit, each exactly once.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_bytes

from dreamjax.errors import UserError
from dreamjax.settings import convert, hints_of, short
from dreamjax.workdir import resolved, write_bytes

T = TypeVar("T")
DEEPEST = 16  # levels of nesting that a description may have; ours and published ones have 4
TOO_DEEP = "it is nested too deeply"

# Formats of ours and the prior that reads each.
READERS = {
    "dreamjax-toybox-1": "toybox",
    "dreamjax-classes-1": "classes",
    "dreamjax-objects-1": "objects",
}


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


def read_metadata(path: str | Path, format: str | None) -> dict[str, str]:
    """The metadata of a file of a `format`, None for one that others wrote.

    Raises UserError where it is missing, damaged, or of another format.
    """
    with open_file(path) as file:
        metadata = file.metadata() or {}
    found = metadata.get("format")
    if format is not None and found != format:
        other = f" (read it as prior={READERS[found]})" if found in READERS else ""
        raise UserError(f"{path} is of format {short(found)}, not {format!r}{other}")
    return metadata


def description(path: str | Path, format: str, key: str) -> dict[str, Any]:
    """The JSON object under `key` in the metadata of a file of ours; raises UserError without."""
    text = read_metadata(path, format).get(key, "")
    try:
        return parse_object(text)
    except ValueError as error:
        raise UserError(f"{path}: cannot make sense of its description: {error}") from error


def parse_object(text: str) -> dict[str, Any]:
    """The object that a JSON text is; raises ValueError for anything else, and deep nesting."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [child for value in level for child in _children(value)]
        if not level:
            return found
    raise ValueError(TOO_DEEP)


def _children(value: Any) -> Iterable[Any]:
    inside = value.values() if isinstance(value, dict) else value
    return (child for child in inside if isinstance(child, dict | list))


def build(path: str | Path, cls: type[T], plain: Any) -> T:
    """The settings class `cls` of the fields that a file describes, parts of it as objects.

    Every type and range is checked by the class's annotations (`dreamjax.settings`); raises
    UserError naming the file, the field and what would be right.
    """
    try:
        return _build(cls, plain, "")
    except UserError as error:
        raise UserError(f"{path}: cannot make sense of its description: {error}") from error


def _build(cls: type[T], plain: Any, name: str) -> T:
    if not isinstance(plain, dict):
        raise UserError(f"{name or 'it'} is {short(plain)}: expected an object")
    prefix = f"{name}." if name else ""
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    for key in plain:
        if key not in fields:
            raise UserError(f"there is no {prefix}{short(key)}, only {', '.join(fields)}")
    for key, field in fields.items():
        if key not in plain and field.default is dataclasses.MISSING:
            raise UserError(f"{prefix}{key} is missing")
    hints, found = hints_of(cls), {}
    for key, value in plain.items():
        part = getattr(hints[key], "__is_settings__", False)
        found[key] = (_build if part else convert)(hints[key], value, prefix + key)
    return cls(**found)


def open_file(path: str | Path):
    """An open safetensors file, of NumPy arrays; raises UserError where it cannot be read."""
    path = resolved(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UserError(f"cannot read weights {path}: it is no file")
    try:
        return safe_open(str(path), framework="numpy")
    except (OSError, SafetensorError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"cannot read weights {path}: {reason}") from error


def fit(path: str | Path, wanted: PyTree) -> PyTree:
    """A file's tensors as float32 parameters of the tree of shapes `wanted` (`jax.eval_shape`'s).

    Shapes are compared before anything is read. Raises UserError, naming up to four of them, for
    tensors that are missing, left over, of another shape, no real numbers or not finite, and for a
    file that is missing or damaged.
    """
    flat = cast(dict[str, Any], flatten_dict(wanted, sep="."))
    shapes = {name: value.shape for name, value in flat.items()}
    with open_file(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        if wrong := mismatches(shapes, found):
            raise UserError(f"{path} does not fit the network: {wrong}")
        params = {name: jnp.asarray(tensor(path, file, name)) for name in flat}
    return unflatten_dict(params, sep=".")


def tensor(path: str | Path, file: Any, name: str) -> Float[np.ndarray, "..."]:
    """A tensor of an open file as float32; raises UserError where it has no finite real numbers."""
    try:
        value = file.get_tensor(name)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        reason = f"of a type that cannot be read, {error}"
        raise UserError(f"weights {path}: {name[:100]} is {reason[:200]}") from error
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f"weights {path}: {name[:100]} is {value.dtype}: expected real numbers")
    with np.errstate(over="ignore"):
        value = np.asarray(value, np.float32)
    check_finite(path, {name: value})
    return value


@functools.lru_cache(maxsize=8)
def shapes_of(net: Any) -> PyTree:
    """The shapes of what `net.init(key)` gives, without making it."""
    return jax.eval_shape(net.init, jax.random.key(0))


def mismatches(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Up to four tensors that are missing, left over or of another shape; "" where all fit."""
    wrong = [
        *(f"missing {name[:100]}" for name in wanted if name not in found),
        *(f"left over {name[:100]}" for name in found if name not in wanted),
        *(
            f"{name[:100]} is {short(list(found[name]))}, not {list(shape)}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ),
    ]
    return "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")


def check_finite(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise UserError with the first tensor that is not finite."""
    wrong = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if wrong:
        name, dtype = wrong[0][:100], tensors[wrong[0]].dtype
        raise UserError(f"weights {path}: {name} is not finite in {dtype}")
