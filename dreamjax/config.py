"""From what a user typed to what the code takes, and the workdir that a run owns.

Configs are mappings (`ml_collections.ConfigDict` among them) up to here and frozen dataclasses from
here on; no function beyond sees a mapping.
"""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from dreamjax.errors import UserError

T = TypeVar("T")

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"

# Locks of workdirs, by their files. They are the process's: the system lets go of them when it
# ends, however it ends.
_locks: dict[Path, FileLock] = {}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean X?" for the nearest of `known`, empty where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def check_counts(c, *names: str) -> None:
    """Raise UserError for a field of `names` below 1."""
    for name in names:
        if getattr(c, name) < 1:
            raise UserError(f"{name} must be at least 1; got {getattr(c, name)}")


def build(cls: type[T], config: Mapping[str, Any], where: str = "config") -> T:
    """Return the dataclass `cls` with the values of `config`; missing keys keep their defaults.

    Nested dataclasses come from nested mappings, tuples from tuples or lists, floats from ints too.
    Raises UserError, with the key's full path beginning at `where`, for an unknown or a missing
    key, a value of another type, or one that the dataclass refuses with a ValueError.
    """
    config = _plain_dict(config)
    if not isinstance(config, Mapping):
        raise _ill_typed(where, config, cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    for key in config:
        if key not in fields:
            raise UserError(f"unknown config key {where}.{key}{nearest(str(key), fields)}")
    values = {
        key: _convert(hints[key], config[key], f"{where}.{key}") for key in fields if key in config
    }
    for name, field in fields.items():
        default = (field.default, field.default_factory)
        if name not in values and default == (dataclasses.MISSING, dataclasses.MISSING):
            raise UserError(f"{where}.{name} is missing: expected {_describe(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _plain_dict(config):
    # A ConfigDict is no Mapping; its values may be references, which this resolves.
    return config.to_dict() if hasattr(config, "to_dict") else config


def _convert(hint, value, where: str):
    """Return `value` as the annotation `hint` wants it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for arg in (a for a in args if a is not type(None)):
            try:
                return _convert(arg, value, where)
            except UserError as error:
                errors.append(error)
        raise errors[0] if len(errors) == 1 else _ill_typed(where, value, hint)
    if origin is typing.Literal:
        if value in args:
            return value
        raise _ill_typed(where, value, hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if hint is tuple or origin is tuple:
        if not isinstance(value, tuple | list):
            raise _ill_typed(where, value, hint)
        if not args:
            return tuple(value)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise _ill_typed(where, value, hint)
        return tuple(
            _convert(kind, item, f"{where}[{i}]")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isnan(value):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _ill_typed(where, value, hint)


def _describe(hint) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if dataclasses.is_dataclass(hint):
        return "a group of " + ", ".join(f.name for f in dataclasses.fields(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if type(hint) is type else str(hint)


def _ill_typed(where: str, value, hint) -> UserError:
    return UserError(f"{where} is {value!r}: expected {_describe(hint)}")


def to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` as JSON would give it back: plain dicts and lists.

    Raises UserError for a value that JSON has no place for.
    """
    try:
        return json.loads(json.dumps(_plain_dict(config), sort_keys=True))
    except TypeError as error:
        raise UserError(f"the config holds a value that cannot be stored: {error}") from error


def check_workdir(
    workdir: str | Path, config: Mapping[str, Any], harmless: tuple[str, ...] = ()
) -> Path:
    """Claim `workdir` for the run that `config` describes and return it, with `config.json` in it.

    A new or empty directory is taken; one with the same config is gone on with. Only the dotted
    keys in `harmless` (groups or single values) may differ, and then `config.json` is brought up to
    date. No other process can claim it until this one ends or calls `release_workdir`. Raises
    UserError, with nothing touched, where the directory is another run's or another process's,
    holds something else, or cannot be written.
    """
    workdir = Path(workdir).expanduser()
    plain = to_plain(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        present = sorted(p.name for p in workdir.iterdir())
        if not os.access(workdir, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write")
        path = workdir / CONFIG_FILE
        stored = json.loads(path.read_text()) if CONFIG_FILE in present else None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot use the workdir {workdir}: {reason}") from error
    except ValueError as error:
        raise UserError(f"cannot read {workdir / CONFIG_FILE}: {error}") from error
    if stored is None:
        # Logs that the shell made (`2> workdir/log.txt`) and hidden files are nobody's loss.
        other = [n for n in present if not n.startswith(".") and not n.endswith((".txt", ".log"))]
        if other:
            raise UserError(
                f"the workdir {workdir} holds {other[0]} but no {CONFIG_FILE} of a run: "
                "name a new or an empty directory"
            )
    else:
        _check_same_run(workdir, stored, plain, harmless)
    _lock(workdir)
    if stored != plain:
        write_atomic(path, json.dumps(plain, indent=2, sort_keys=True) + "\n")
    return workdir


def _lock(workdir: Path) -> None:
    path = (workdir / LOCK_FILE).resolve()
    lock = _locks.setdefault(path, FileLock(path, blocking=False, thread_local=False))
    if lock.is_locked:  # claimed by an earlier run of this very process
        return
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is running in the workdir {workdir}: wait for its end, stop it, or "
            "name another --workdir"
        ) from error
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def release_workdir(workdir: str | Path) -> None:
    """Let other processes claim `workdir`; does nothing where this one has not."""
    lock = _locks.pop((Path(workdir).expanduser() / LOCK_FILE).resolve(), None)
    if lock is not None:
        lock.release()


def _check_same_run(workdir: Path, stored, plain, harmless: tuple[str, ...]) -> None:
    there, here = flatten(stored), flatten(plain)
    differ = [
        key
        for key in sorted({*there, *here}, key=lambda key: (key != "prompt", key))
        if there.get(key, "absent") != here.get(key, "absent")
        and not any(key == h or key.startswith(h + ".") for h in harmless)
    ]
    if differ:
        key, more = differ[0], differ[1:]
        raise UserError(
            f"the workdir {workdir} belongs to another run: {key} is "
            f"{json.dumps(there.get(key, 'absent'))} there and "
            f"{json.dumps(here.get(key, 'absent'))} here"
            + (f" (also differing: {', '.join(more[:5])}{', ...' * (len(more) > 5)})" * bool(more))
            + "; name another --workdir"
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    flat = {}
    for key, value in _plain_dict(config).items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_atomic(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename, so that no reader sees half of it.

    Raises UserError where the disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
