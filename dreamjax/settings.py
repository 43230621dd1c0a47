"""What every part of a config is: a frozen dataclass that checks its values when it is built.

    @settings
    class Blob:
        '''A soft ball of density around the origin.'''

        strength: NonNegative = 5.0  # added to the log density at the origin
        width: Positive = 0.2  # standard deviation, in scene units

A field's annotation says its type and, by `Annotated`, its range; the comment beside it says what
it means. Both are what `--help` shows. Building one converts what is written alike (an int where a
float is meant, a list where a tuple is) and raises UserError for anything else.
"""

import ast
import dataclasses
import functools
import inspect
import io
import math
import tokenize
import types
import typing
from typing import Annotated, Any, dataclass_transform

from dreamjax.errors import UserError

LARGE = 1e9  # no setting means anything beyond


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `above` and `below` leave the ends out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; NaN does not."""
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        """The range in words."""
        low, high = (f"{end:.10g}" for end in (self.low, self.high))
        words = []
        if abs(self.low) not in (LARGE, math.inf):
            words.append(f"above {low}" if self.above else f"at least {low}")
        if abs(self.high) not in (LARGE, math.inf):
            words.append(f"below {high}" if self.below else f"at most {high}")
        return " and ".join(words) or f"between {-LARGE:g} and {LARGE:g}"


@dataclasses.dataclass(frozen=True)
class Rising:
    """Of a pair: the first number is not above the second; below it where `strictly`."""

    strictly: bool = False


@dataclasses.dataclass(frozen=True)
class Home:
    """The module or package in which `--config.PART=name` looks for a part of that name."""

    module: str


Count = Annotated[int, Range(1, 10**8)]
Every = Annotated[int, Range(0, 10**8)]  # steps between two events; 0 is never
Pixels = Annotated[int, Range(1, 4096)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0.0, 1.0)]
Positive = Annotated[float, Range(0.0, LARGE, above=True)]
NonNegative = Annotated[float, Range(0.0, LARGE)]
Real = Annotated[float, Range(-LARGE, LARGE)]
Dtype = typing.Literal["float32", "bfloat16", "float16"]
ShareSpan = Annotated[tuple[Share, Share], Rising()]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type) -> type:
    """Make `cls` a frozen dataclass that converts and checks its fields when it is built.

    What one field's range cannot say goes into the class's `__post_init__`, which sees checked
    values and raises UserError.
    """
    inherited = [base.__dict__.get("__checks__", ()) for base in reversed(cls.__mro__[1:])]
    own = (cls.__dict__["__post_init__"],) if "__post_init__" in cls.__dict__ else ()
    cls.__checks__ = (*(check for checks in inherited for check in checks), *own)

    def __post_init__(self):
        hints = hints_of(type(self))
        for field in dataclasses.fields(self):
            value = convert(hints[field.name], getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)
        for check in dict.fromkeys(type(self).__checks__):
            check(self)

    cls.__post_init__ = __post_init__
    cls.__is_settings__ = True
    return dataclasses.dataclass(frozen=True)(cls)


def is_settings(value: Any) -> bool:
    """Whether `value` is a part of a config (an instance, not a class)."""
    return getattr(type(value), "__is_settings__", False)


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a class, with what `Annotated` adds."""
    return typing.get_type_hints(cls, include_extras=True)


def convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as the annotation `hint` wants it; raises UserError, naming `name`, where it cannot.

    A class with a classmethod `from_number` takes a plain number for itself.
    """
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        value = convert(hint, value, name)
        for mark in marks:
            _check(mark, value, name)
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, name)
    if origin is typing.Literal:
        if value in args:
            return value
    elif hint is tuple or origin is tuple:
        return _convert_tuple(hint, args, value, name)
    elif isinstance(hint, type) and getattr(hint, "_is_protocol", False):
        # Asked of the class: a property may read a file.
        fields = {f.name for f in dataclasses.fields(value)} if is_settings(value) else set()
        if fields | set(dir(type(value))) >= members(hint) and is_settings(value):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:  # a whole number past the largest float
                number = math.inf if value > 0 else -math.inf
            if not math.isnan(number):
                return number
    elif hint is str:
        if isinstance(value, str) and is_text(value):
            return value
    elif isinstance(hint, type) and isinstance(value, hint):
        if not (hint is int and isinstance(value, bool)):
            return value
    elif hasattr(hint, "from_number") and isinstance(value, int | float):
        try:
            return hint.from_number(value)
        except UserError as error:
            raise UserError(f"{name} is {value}: {str(error).partition(': ')[2]}") from error
    raise UserError(f"{name} is {short(value)}: expected {expected(hint)}")


def is_text(value: str) -> bool:
    """Whether a string can be written down; one of bytes that are no UTF-8 cannot."""
    try:
        return bool(value.encode()) or not value
    except UnicodeEncodeError:
        return False


@functools.cache
def members(protocol: type) -> frozenset[str]:
    """What a part must have to follow a protocol."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in bases for name in (*base.__dict__, *base.__annotations__)}
    return frozenset(n for n in names if n == "__call__" or not n.startswith("_"))


def _convert_union(args, value, name: str):
    if value is None and type(None) in args:
        return None
    errors = []
    for arg in (a for a in args if a is not type(None)):
        try:
            return convert(arg, value, name)
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise UserError(f"{name} is {short(value)}: expected {' or '.join(map(expected, args))}")


def _convert_tuple(hint, args, value, name: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise UserError(f"{name} is {short(value)}: expected {expected(hint)}")
    if not args:
        return tuple(value)
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
    if len(kinds) != len(value):
        raise UserError(f"{name} is {short(value)}: expected {expected(hint)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(pairs))


def _check(mark: Any, value: Any, name: str) -> None:
    if value is None:
        return
    if isinstance(mark, Range) and value not in mark:
        raise UserError(f"{name} is {short(value)}: expected {mark}")
    if isinstance(mark, Rising):
        first, second = value
        if first > second or (mark.strictly and first == second):
            how = "below" if mark.strictly else "not above"
            raise UserError(f"{name} is {value}: expected the first {how} the second")


def short(value: Any) -> str:
    """How a value is shown in a message: as it is written, cut off where that is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def expected(hint: Any) -> str:
    """What values an annotation allows, in words."""
    if typing.get_origin(hint) is Annotated:
        inner, *marks = typing.get_args(hint)
        ranges = [str(mark) for mark in marks if isinstance(mark, Range)]
        return ", ".join([expected(inner), *ranges])
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(expected, args))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"any number of {expected(args[0])}"
        if len(set(args)) == 1:
            return f"{len(args)} times {expected(args[0])}"
        return "(" + ", ".join(map(expected, args)) + ")"
    if hint is type(None):
        return "None"
    names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    name = getattr(hint, "__name__", str(hint))
    return names.get(name, name)


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """What stands beside each field of `cls` in its source: a comment, or a string below it."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if getattr(base, "__is_settings__", False):
            docs |= _docs_in_source(base)
    return docs


def _docs_in_source(cls: type) -> dict[str, str]:
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(cls))
    except (OSError, TypeError):  # a class made in an interpreter
        return {}
    definition = ast.parse(source).body[0]
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    docs = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        text = comments.get(node.end_lineno or 0, "")
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        docs[node.target.id] = text
    return docs
