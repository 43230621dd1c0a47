"""Trees of settings as paths, overrides, parts by name, help and JSON."""

import json
from typing import Annotated, Protocol

import pytest

from dreamjax import config as config_lib
from dreamjax.clock import Ramp
from dreamjax.config import (
    as_config_dict,
    branches,
    choose,
    describe,
    dumps,
    from_config_dict,
    from_plain,
    leaves,
    nearest,
    replaced,
    to_plain,
)
from dreamjax.errors import UserError
from dreamjax.settings import Count, Home, Positive, settings


class Wheel(Protocol):
    """What a car rolls on."""

    size: float


@settings
class Round:
    """A round wheel."""

    size: Positive = 0.3  # radius in metres


@settings
class SquareWheel:
    """A square wheel, for comparison."""

    size: Positive = 0.2  # half a side in metres
    grip: Ramp = Ramp(0.5, 1.0)  # over the run


@settings
class Engine:
    """What moves a car."""

    power: Positive = 50.0  # in kilowatts


@settings
class Car:
    """A car."""

    name: str = ""  # of the car
    seats: Count = 4  # how many may sit
    span: tuple[float, float] = (0.1, 1.0)
    color: str | None = None
    front: Annotated[Wheel, Home(__name__)] = Round()  # the two in front
    back: tuple[Annotated[Wheel, Home(__name__)], ...] = (Round(), SquareWheel())
    """those behind"""
    twins: tuple[Engine, ...] = (Engine(), Engine(60.0))
    spare: Engine | None = None  # a second engine


LEAVES = {
    "name": "",
    "seats": 4,
    "span": (0.1, 1.0),
    "color": None,
    "front.size": 0.3,
    "back.round.size": 0.3,
    "back.square_wheel.size": 0.2,
    "back.square_wheel.grip.start": 0.5,
    "back.square_wheel.grip.end": 1.0,
    "back.square_wheel.grip.over": (0.0, 1.0),
    "twins.0.power": 50.0,
    "twins.1.power": 60.0,
    "spare": None,
}


def test_every_value_has_a_path():
    assert leaves(Car()) == LEAVES
    assert {"front", "back", "back.round", "back.square_wheel.grip", "twins.1"} <= set(
        branches(Car())
    )


def test_values_are_replaced_by_their_paths():
    car = replaced(Car(), {"twins.1.power": 70, "back.square_wheel.grip.end": 2, "seats": 2})
    assert leaves(car) == LEAVES | {
        "twins.1.power": 70.0,
        "back.square_wheel.grip.end": 2.0,
        "seats": 2,
    }
    with pytest.raises(UserError, match=r"^twins.0.power is 0.0: expected above 0"):
        replaced(Car(), {"twins.0.power": 0})


def test_through_a_config_dict_and_back():
    config = as_config_dict(Car())
    assert config.back.square_wheel.grip.end == 1.0 and config.is_locked
    assert from_config_dict(Car(), config) == Car()
    with config.unlocked():
        config.twins._0.power = 55.0
    assert from_config_dict(Car(), config).twins == (Engine(55.0), Engine(60.0))


@pytest.mark.parametrize(
    ("path", "text", "part"),
    [
        ("front", "square_wheel", SquareWheel()),
        ("front", f"{__name__}:SquareWheel", SquareWheel()),
        ("back", "square_wheel", (SquareWheel(),)),
        ("back", "(round, square_wheel)", (Round(), SquareWheel())),
        ("back", "none", ()),
        ("back.square_wheel.grip", "0.7", Ramp(0.7, 0.7)),
        ("spare", "engine", Engine()),
        ("spare", "none", None),
    ],
)
def test_a_part_is_chosen_by_its_name(path, text, part):
    assert choose(Car(), path, text) == part


def test_parts_that_are_there_keep_their_values():
    car = replaced(Car(), {"back.square_wheel.size": 0.9})
    assert choose(car, "back", "square_wheel") == (SquareWheel(0.9),)


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("front", "rond", "--config.front=rond: there is no such part, did you mean round?"),
        ("front", "engine", "--config.front is Engine(power=50.0): expected Wheel"),
        ("front", "none", "there is no such part"),
        ("front", "no_module:X", "there is no module 'no_module'"),
        ("front", "json:dumps", "json has no part 'dumps'"),
        ("front", "3", "there is no such part"),
        ("twins.0", "engine", "--config.twins.0 is one of several"),
        ("back", "round,ball", "--config.back=ball"),
        ("back.square_wheel.grip", "2e9", "grip is 2000000000.0: expected between"),
    ],
)
def test_another_name_is_one_line(path, text, says):
    with pytest.raises(UserError) as caught:
        choose(Car(), path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_json_keeps_the_classes_and_gives_equals_back():
    car = Car("beetle", back=(SquareWheel(grip=Ramp(0.1, 0.2)),), spare=Engine(1.0))
    plain = json.loads(dumps(car))
    assert plain["back"][0]["class"] == f"{__name__}:SquareWheel"
    assert from_plain(plain) == car and to_plain(from_plain(plain)) == to_plain(car)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.pop("class"), "config does not say its class"),
        (lambda p: p["front"].update({"class": 3}), "config.front does not say its class"),
        (lambda p: p["front"].update({"class": "os:path"}), "is a os:path, which is not known"),
        (lambda p: p["front"].update({"class": "antigravity:X"}), "which is not known here"),
        (lambda p: p["front"].update({"class": "dreamjax.nothing:X"}), "no module"),
        (lambda p: p["front"].update({"class": "dreamjax.errors:UserError"}), "has no part"),
        (lambda p: p["front"].update(sise=1), "config.front.sise, did you mean size?"),
        (lambda p: p.pop("seats"), "config.seats is missing"),
        (lambda p: p["twins"][1].update(power=-1), r"config.twins[1].power is -1"),
        (lambda p: p.update(twins=3), "config.twins is 3"),
        (lambda p: p.update(front=[]), "config.front is (): expected Wheel"),
    ],
)
def test_json_that_nobody_wrote_is_told(change, says):
    plain = to_plain(Car())
    change(plain)
    with pytest.raises(UserError) as caught:
        from_plain(plain)
    assert says in str(caught.value)


def test_reading_json_imports_nothing_of_its_choice():
    import sys

    plain = to_plain(Car()) | {"front": {"class": "this:Zen"}}
    with pytest.raises(UserError, match="import its module first"):
        from_plain(plain)
    assert "this" not in sys.modules


def test_help_explains_every_value():
    text = "\n".join(describe(Car()))
    for line in (
        "  --config.seats=4\n      how many may sit (a whole number, at least 1",
        "--config.front=round\n    the two in front\n    Round: A round wheel.",
        "  --config.front.size=0.3\n      radius in metres (a number, above 0)",
        "--config.back=round,square_wheel\n    those behind",
        "  --config.back.square_wheel.grip=0.5 to 1 while the run goes from 0 to 1\n",
        "  --config.twins.1.power=60.0\n      in kilowatts",
        "  --config.spare=None\n      a second engine (Engine or None)",
    ):
        assert line in text
    assert all(path.split(".")[-1] in text for path in leaves(Car()))


def test_nearest():
    assert nearest("stpes", ["steps", "seed"]) == ", did you mean steps?"
    assert nearest("zzz", ["steps", "seed"]) == ""
    assert nearest("x" * 100_000, ["steps"]) == ""


def test_the_parts_of_a_package_are_its_files():
    assert {"mlp"} <= set(config_lib.parts_in("dreamjax.scene.fields"))
    assert {"orientation", "opacity", "entropy"} <= set(
        config_lib.parts_in("dreamjax.scene.penalties")
    )
