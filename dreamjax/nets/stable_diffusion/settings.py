"""Published `config.json` files: what a network of ours takes from one, and what it refuses.

A key that is not there has the published default. Whatever would make another network than ours
raises UserError naming the key and its value, so that no weights are read into the wrong one.
"""

from collections.abc import Collection, Mapping
from typing import Any

from dreamjax.errors import UserError
from dreamjax.settings import short

# The largest whole number under a key; no published network comes near, and any other would ask for
# more memory than there is.
LARGEST = {
    "sample_size": 4096,
    "image_size": 4096,
    "patch_size": 4096,
    "layers_per_block": 8,
    "num_hidden_layers": 96,
    "num_layers": 96,
    "num_attention_heads": 1024,
    "num_heads": 1024,
    "relative_attention_num_buckets": 1024,
    "attention_head_dim": 1024,
    "block_out_channels": 16_384,
    "in_channels": 1024,
    "out_channels": 1024,
    "latent_channels": 1024,
    "norm_num_groups": 1024,
    "max_position_embeddings": 65_536,
    "num_train_timesteps": 100_000,
}
LARGEST_OTHER = 2_000_000  # of a vocabulary, of a width
LEVELS = 8


def refused(key: str, value: Any, right: str) -> UserError:
    """The error for a published setting that is not what it must be, `right` in words."""
    return UserError(f"config.json has {key[:80]} {short(value)}; this network has {right}")


def refuse_others(
    given: Mapping[str, Any], read: Collection[str], fixed: Mapping[str, Any]
) -> None:
    """Raise UserError for a key that is not `read` and not at its value in `fixed`.

    Other keys that begin with "_" say who wrote the file; those of options that we do not have are
    null, false or 0 where they are off.
    """
    for key, value in given.items():
        if key in fixed:
            if value != fixed[key]:
                raise refused(key, value, repr(fixed[key]))
        elif key not in read and not key.startswith("_") and value not in (None, False):
            raise refused(key, value, "no such option")


def whole(given: Mapping[str, Any], key: str, default: int) -> int:
    """The positive whole number under `key`; raises UserError for anything else."""
    value = given.get(key, default)
    if not _is_whole(value):
        raise refused(key, value, "a positive whole number")
    _check_size(key, value)
    return value


def wholes_of(cls: type, given: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """`whole` by key, whose defaults are those of the config `cls`; raises UserError."""
    return {key: whole(given, key, getattr(cls, key)) for key in keys}


def wholes(given: Mapping[str, Any], key: str, default: Collection[int]) -> tuple[int, ...]:
    """The positive whole numbers listed under `key`; raises UserError for anything else."""
    value = given.get(key, default)
    if not isinstance(value, list | tuple) or not value or not all(map(_is_whole, value)):
        raise refused(key, value, "a list of positive whole numbers")
    if len(value) > LEVELS:
        raise refused(key, value, f"at most {LEVELS} levels")
    for each in value:
        _check_size(key, each)
    return tuple(value)


def number(given: Mapping[str, Any], key: str, default: float) -> float:
    """The positive number under `key`, at most 1000; raises UserError for anything else."""
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
        raise refused(key, value, "a positive number, at most 1000")
    return float(value)


def choice(given: Mapping[str, Any], key: str, default: str, known: Collection[str]) -> str:
    """The name under `key`, one of `known`; raises UserError for anything else."""
    value = given.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise refused(key, value, " or ".join(map(repr, known)))
    return value


def switch(given: Mapping[str, Any], key: str, default: bool) -> bool:
    """The true or false under `key`; raises UserError for anything else."""
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise refused(key, value, "true or false")
    return value


def _check_size(key: str, value: int) -> None:
    largest = LARGEST.get(key, LARGEST_OTHER)
    if value > largest:
        raise refused(key, value, f"at most {largest}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
