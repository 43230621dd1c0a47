"""Parts of configs: what they convert, what they refuse, and what they say of themselves."""

import dataclasses
from typing import Annotated, Literal, Protocol

import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.errors import UserError
from dreamjax.settings import (
    Count,
    NonNegative,
    Positive,
    Range,
    Rising,
    Seed,
    Share,
    expected,
    field_docs,
    hints_of,
    settings,
)


class Shape(Protocol):
    """Something with a name and an area."""

    sides: int

    def area(self) -> float:
        """Of it."""
        ...


@settings
class Square:
    """A square."""

    side: Positive = 1.0  # in metres
    sides: int = 4
    """How many sides it has: four."""

    def area(self) -> float:
        """Of it."""
        return self.side**2


@settings
class Blank:
    """A part that is no shape."""


@settings
class All:
    """One of every kind."""

    count: Count = 3
    share: Share = 0.5
    seed: Seed = 0
    span: Annotated[tuple[NonNegative, NonNegative], Rising(strictly=True)] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    maybe: Positive | None = None
    weight: Ramp = Ramp()
    shape: Shape = Square()


@settings
class More(All):
    """All, and a relation between two of its values."""

    least: int = 0

    def __post_init__(self):
        if self.least > self.count:
            raise UserError(f"least is {self.least}: expected at most count, {self.count}")


def test_values_are_converted():
    part = All(share=1, span=[0, 2], names=["x"], maybe=3, weight=2)
    assert part.share == 1.0 and type(part.share) is float
    assert part.span == (0.0, 2.0) and part.names == ("x",) and part.maybe == 3.0
    assert part.weight == Ramp(2.0, 2.0)
    assert hash(part) == hash(dataclasses.replace(part)) and part != All()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"count": 0}, "count is 0: expected at least 1 and at most 100000000"),
        ({"count": 10**9}, "count is 1000000000: expected at least 1"),
        ({"count": 1.0}, "count is 1.0: expected a whole number"),
        ({"count": True}, "count is True: expected a whole number"),
        ({"count": "3"}, "count is '3': expected a whole number"),
        ({"share": 1.1}, "share is 1.1: expected at least 0 and at most 1"),
        ({"share": float("nan")}, "share is nan: expected a number"),
        ({"seed": 2**32}, "seed is 4294967296: expected at least 0 and at most 4294967295"),
        ({"seed": -1}, "seed is -1"),
        ({"span": (1.0, 1.0)}, "span is (1.0, 1.0): expected the first below the second"),
        ({"span": (0.0, float("inf"))}, "span[1] is inf: expected at least 0"),
        ({"span": (1.0,)}, "span is (1.0,): expected 2 times a number, at least 0"),
        ({"names": (1,)}, "names[0] is 1: expected text"),
        ({"names": "ab"}, "names is 'ab': expected any number of text"),
        ({"flag": 1}, "flag is 1: expected true or false"),
        ({"kind": "c"}, "kind is 'c': expected one of 'a', 'b'"),
        ({"maybe": 0.0}, "maybe is 0.0: expected above 0"),
        ({"weight": "x"}, "weight is 'x': expected Ramp"),
        ({"weight": 1e30}, "weight is 1e+30: expected between -1e+09 and 1e+09"),
        ({"shape": Blank()}, "shape is Blank(): expected Shape"),
        ({"shape": 3}, "shape is 3: expected Shape"),
        ({"names": ("x" * 500, 3)}, "names[1] is 3"),
        ({"kind": "x" * 5000}, "... (5002 characters): expected one of"),
    ],
)
def test_other_values_are_refused_by_name(values, says):
    with pytest.raises(UserError) as caught:
        All(**values)
    assert says in str(caught.value) and len(str(caught.value)) < 200


def test_a_class_inherits_fields_and_checks():
    assert More(count=5, least=4).least == 4
    with pytest.raises(UserError, match="least is 4: expected at most count, 3"):
        More(least=4)
    with pytest.raises(UserError, match="count is 0"):
        More(count=0)

    @settings
    class Most(More):
        """Without a check of its own."""

    with pytest.raises(UserError, match="least is 4"):
        Most(least=4)


def test_what_stands_beside_a_field_is_its_explanation():
    assert field_docs(Square) == {"side": "in metres", "sides": "How many sides it has: four."}
    assert field_docs(More)["count"] == ""
    assert expected(hints_of(Square)["side"]) == "a number, above 0"
    assert str(Range(1, 3)) == "at least 1 and at most 3"
    assert str(Range(0, 1, above=True, below=True)) == "above 0 and below 1"


def test_a_ramp_goes_by_fractions_of_the_run():
    ramp = Ramp(1.0, 3.0, (0.25, 0.75))
    for total in (8, 800):
        values = [float(ramp(Clock(share * total // 8, total))) for share in (0, 2, 3, 4, 6, 8, 9)]
        assert values == pytest.approx([1.0, 1.0, 1.5, 2.0, 3.0, 3.0, 3.0], abs=1e-6)
    switch = Ramp(0.0, 1.0, (0.5, 0.5))
    assert [float(switch(Clock(step, 10))) for step in (4, 5, 6)] == [0.0, 0.0, 1.0]
