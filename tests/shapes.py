"""The checker of the package's annotations: of every call in the tests, shapes and all.

A violation raises `jaxtyping.TypeCheckError`. Axes have one size within a call; within a NamedTuple
they have one size of their own.
"""

import functools
import io
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import jaxtyping
import numpy as np
from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from beartype.door import is_bearable
from beartype.vale import Is
from jax import Array

# Integers pass for real numbers, NumPy's scalars for Python's, and any stream of text for a file's.
PASSING = {
    float: float | int | np.floating | np.integer,
    int: int | np.integer,
    typing.TextIO: io.TextIOBase,
}
CONF = BeartypeConf(hint_overrides=BeartypeHintOverrides(PASSING))


def check(packages: list[str]) -> None:
    """Check the annotations of these packages from here on; call it before they are imported."""
    # NumPy's arrays are taken wherever JAX itself takes them.
    jaxtyping.Array = Array | np.ndarray | np.generic
    jaxtyping.install_import_hook(packages, f"{__name__}.checked")


def checked(function):
    """The function with its arguments and its result checked; jaxtyping remembers the axes."""
    if function.__name__ == "__init__":  # a part of a config converts what it is given
        return function
    hints = function.__annotations__
    function.__annotations__ = {name: checkable(hint) for name, hint in hints.items()}
    return beartype(conf=CONF)(function)


def checkable(hint: Any) -> Any:
    """The annotation with NamedTuples looked into; a protocol, which is not checked, is Any."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if getattr(hint, "_is_protocol", False):
        return Any
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return Annotated[hint, Is[fields_fit]]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(checkable, args))]  # noqa: UP007
    if isinstance(origin, type) and origin is not Callable:
        return origin[tuple(map(checkable, args))]
    return hint


def fields_fit(value: tuple) -> bool:
    """Whether a NamedTuple's fields are what its class says; TypeError names one that is not."""
    with jaxtyping.jaxtyped("context"):
        for name, hint in fields_of(type(value)).items():
            if not is_bearable(getattr(value, name), hint, conf=CONF):
                found = getattr(value, name)
                found = f"{found.dtype} {found.shape}" if hasattr(found, "shape") else repr(found)
                raise TypeError(f"{type(value).__name__}.{name} is {found}; expected {hint}")
    return True


@functools.cache
def fields_of(cls: type) -> dict[str, Any]:
    """The checkable annotations of a NamedTuple's fields."""
    return {name: checkable(hint) for name, hint in typing.get_type_hints(cls).items()}
