"""Configs: a tree of settings as dotted values, with overrides, and as `config.json`.

A path names a value in the tree: `optimizer.learning_rate`. A part of a tuple is named by its
class, `penalties.entropy.weight.end`; where two are of one class, all are named by their number,
`phases.0.size`. A whole part is replaced by name: `--config.field=hash_grid` takes the class
HashGrid of the file hash_grid.py in the fields' package with its defaults, `package.module:Class`
any other; `none` leaves a part out where that is allowed; a list, `glb,ply`, makes a tuple.
"""

import dataclasses
import difflib
import importlib
import json
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from ml_collections import config_dict

from dreamjax.errors import UserError
from dreamjax.settings import Home, convert, expected, field_docs, hints_of, is_settings

CLASS = "class"  # the key of `config.json` under which a part says what it is


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean X?" for the nearest of `known`, empty where none is near."""
    close = difflib.get_close_matches(word[:200], list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def snake(name: str) -> str:
    """A class's name as its file is called: HashGrid is hash_grid."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def camel(name: str) -> str:
    """Undo `snake`."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def is_parts(value: Any) -> bool:
    """Whether `value` is a tuple of parts."""
    return isinstance(value, tuple) and bool(value) and all(map(is_settings, value))


def part_names(parts: tuple) -> list[str]:
    """What each part of a tuple is called in a path."""
    names = [snake(type(part).__name__) for part in parts]
    return names if len(set(names)) == len(names) else [str(i) for i in range(len(parts))]


def children(part: Any) -> dict[str, Any]:
    """The values directly below a part or a tuple of parts, by name."""
    if is_settings(part):
        return {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    return dict(zip(part_names(part), part, strict=True))


def leaves(part: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of the tree that is no part, by its path."""
    found = {}
    for name, value in children(part).items():
        if is_settings(value) or is_parts(value):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def branches(part: Any, prefix: str = "") -> dict[str, Any]:
    """Every part and tuple of parts below `part`, by its path."""
    found = {}
    for name, value in children(part).items():
        if is_settings(value) or is_parts(value):
            found |= {prefix + name: value} | branches(value, f"{prefix}{name}.")
    return found


def hint_at(part: Any, path: str) -> Any:
    """The annotation of the field at `path`, None for a part of a tuple."""
    *above, name = path.split(".")
    for step in above:
        part = children(part)[step]
    return hints_of(type(part))[name] if is_settings(part) else None


def replaced(part: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """`part` with the values at these paths in place of its own; parts are built anew.

    Raises UserError, with the whole path, for a value that its part refuses.
    """
    changed, own = {}, children(part)
    for name, value in own.items():
        below = {p[len(name) + 1 :]: v for p, v in values.items() if p.startswith(name + ".")}
        if name in values:
            value = values[name]
        if below:
            value = replaced(value, below, f"{prefix}{name}.")
        changed[name] = value
    if not is_settings(part):
        return tuple(changed.values())
    try:
        return dataclasses.replace(part, **changed)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


def flag_path(path: str) -> str:
    """A path as `ml_collections` takes it: numbers are no names there, phases.0 is phases._0."""
    return re.sub(r"\.(?=\d)", "._", path)


def as_config_dict(part: Any) -> config_dict.ConfigDict:
    """The leaves as nested ConfigDicts, from which `ml_collections` makes flags."""
    config: Any = config_dict.ConfigDict()
    for path, value in leaves(part).items():
        *above, name = flag_path(path).split(".")
        group: Any = config
        for step in above:
            if step not in group:
                group[step] = config_dict.ConfigDict()
            group = group[step]
        # A plain None has no type that an override could be parsed by; this takes any literal.
        group[name] = config_dict.placeholder(object) if value is None else value
    return config.lock()


def from_config_dict(part: Any, config: config_dict.ConfigDict) -> Any:
    """`part` with the leaves that `config` holds."""
    values = {}
    for path, before in leaves(part).items():
        value: Any = config
        for step in flag_path(path).split("."):
            value = value[step]
        if value != before:
            values[path] = value
    return replaced(part, values)


def choose(task: Any, path: str, text: str) -> Any:
    """The part, or tuple of parts, that `--config.PATH=TEXT` asks for; raises UserError."""
    hint = hint_at(task, path)
    if hint is None:
        raise UserError(f"--config.{path} is one of several: set its values, or name all of them")
    optional, home, inner, many = _describe_hint(hint)
    if text.lower() == "none" and (optional or many):
        return () if many else None
    if many:
        before = branches(task).get(path, ())
        present = dict(zip(part_names(before), before, strict=True))
        names = [name.strip() for name in text.strip("()").split(",") if name.strip()]
        chosen = tuple(present.get(n) or _part_called(n, path, home) for n in names)
        return convert(hint, chosen, f"--config.{path}")
    part = _number(text) if hasattr(inner, "from_number") else None
    if part is None:
        part = _part_called(text, path, home)
    return convert(hint, part, f"--config.{path}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def takes_parts(hint: Any) -> bool:
    """Whether a field of this annotation holds a part, several, or one or none."""
    *_, inner, _ = _describe_hint(hint)
    if not isinstance(inner, type):
        return False
    return getattr(inner, "_is_protocol", False) or getattr(inner, "__is_settings__", False)


def _describe_hint(hint: Any) -> tuple[bool, str, Any, bool]:
    """(may be None, the home of its parts, what one part is, whether it is a tuple of them)."""
    home = ""
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        home = next((mark.module for mark in marks if isinstance(mark, Home)), "")
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        args = typing.get_args(hint)
        optional = type(None) in args
        hint = next(arg for arg in args if arg is not type(None))
    many = typing.get_origin(hint) is tuple
    inner = typing.get_args(hint)[0] if many else hint
    if typing.get_origin(inner) is Annotated:
        inner, *marks = typing.get_args(inner)
        home = next((mark.module for mark in marks if isinstance(mark, Home)), home)
    if not home and isinstance(inner, type):
        home = inner.__module__
    return optional, home, inner, many


def _part_called(name: str, path: str, home: str) -> Any:
    """A part by its short name in `home`, or by `module:Class`, with its defaults."""
    module, _, class_name = name.partition(":")
    if class_name:
        return _built(_class_of(module, class_name), name)
    if re.fullmatch(r"\w+", name):
        for place in (f"{home}.{snake(name)}", home):
            try:
                found = getattr(importlib.import_module(place), camel(name), None)
            except ModuleNotFoundError as error:
                if not place.startswith(error.name or "\0"):
                    raise UserError(f"--config.{path}={name} needs {error.name}") from error
                continue
            if getattr(found, "__is_settings__", False):
                return _built(found, name)
    known = parts_in(home)
    raise UserError(
        f"--config.{path}={name}: there is no such part{nearest(name, known)}"
        f" (known: {', '.join(known)}; others as package.module:Class)"
    )


def parts_in(home: str) -> list[str]:
    """The short names of the parts that a module defines, or a package's files are named by."""
    module = importlib.import_module(home)
    if not hasattr(module, "__path__"):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == home]
        return sorted(snake(n) for n in own if hasattr(getattr(module, n), "__is_settings__"))
    names = [found.name for found in pkgutil.iter_modules(module.__path__)]
    found = {name: importlib.import_module(f"{home}.{name}") for name in names}
    return [n for n, m in found.items() if hasattr(getattr(m, camel(n), 0), "__is_settings__")]


def _built(cls: Any, name: str) -> Any:
    try:
        return cls()
    except TypeError as error:
        raise UserError(f"{name} has values without defaults: build it in a config file") from error


def _class_of(module: str, name: str) -> type:
    try:
        cls: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UserError(f"there is no module {module!r}: {error}") from error
    if not getattr(cls, "__is_settings__", False):
        raise UserError(f"{module} has no part {name!r}")
    return cls


def to_plain(part: Any) -> Any:
    """A tree of settings as JSON has it: each part an object that says its class."""
    if is_settings(part):
        name = f"{type(part).__module__}:{type(part).__qualname__}"
        return {CLASS: name} | {k: to_plain(v) for k, v in children(part).items()}
    if isinstance(part, tuple | list):
        return [to_plain(item) for item in part]
    return part


def from_plain(plain: Any, where: str = "config") -> Any:
    """Undo `to_plain`.

    Only classes of dreamjax and of modules that are imported already are taken: reading a file
    imports nothing of its choice. Raises UserError for anything that `to_plain` would not write.
    """
    if isinstance(plain, list):
        return tuple(from_plain(item, f"{where}[{i}]") for i, item in enumerate(plain))
    if not isinstance(plain, dict):
        return plain
    name = plain.get(CLASS)
    if not isinstance(name, str):
        raise UserError(f"{where} does not say its class")
    cls = _known_class(name, where)
    fields = {f.name for f in dataclasses.fields(cls)}
    given = {k: from_plain(v, f"{where}.{k}") for k, v in plain.items() if k != CLASS}
    if strange := sorted(set(given) - fields):
        raise UserError(f"unknown config key {where}.{strange[0]}{nearest(strange[0], fields)}")
    if missing := sorted(fields - set(given)):
        raise UserError(f"{where}.{missing[0]} is missing")
    try:
        return cls(**given)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _known_class(name: str, where: str) -> type:
    module, _, class_name = name.partition(":")
    if re.fullmatch(r"dreamjax(\.\w+)+", module):
        return _class_of(module, class_name)
    if module in sys.modules:
        found: Any = getattr(sys.modules[module], class_name, None)
        if getattr(found, "__is_settings__", False):
            return found
    raise UserError(f"{where} is a {name[:200]}, which is not known here: import its module first")


def dumps(task: Any) -> str:
    """The text of `config.json`."""
    return json.dumps(to_plain(task), indent=2) + "\n"


def describe(task: Any, prefix: str = "config") -> list[str]:
    """The lines of `--help`: every part and value with its meaning, range and present value."""
    docs, hints = field_docs(type(task)), hints_of(type(task))
    lines, below = [], []
    for name, value in children(task).items():
        path, doc = f"{prefix}.{name}", docs.get(name, "")
        if hasattr(value, "from_number"):  # a value over time: a number, or its three values
            lines += [f"  --{path}={value}", f"      {doc} (a number, or .start, .end, .over)"]
        elif is_settings(value):
            below += _describe_part(path, doc, value)
        elif is_parts(value):
            below += ["", f"--{path}={','.join(part_names(value))}", f"    {doc}"]
            for part, one in children(value).items():
                below += _describe_part(f"{path}.{part}", "", one)
        else:
            lines += [f"  --{path}={_shown(value)}", f"      {doc} ({expected(hints[name])})"]
    return lines + below


def _describe_part(path: str, doc: str, part: Any) -> list[str]:
    summary = " ".join((type(part).__doc__ or "").split("\n\n")[0].split())
    head = ["", f"--{path}={snake(type(part).__name__)}", *([f"    {doc}"] if doc else [])]
    return [*head, f"    {type(part).__name__}: {summary}", *describe(part, path)]


def _shown(value: Any) -> str:
    return repr(value) if not isinstance(value, str) or not value or " " in value else value
