"""The kinds of objects: how each is built, which parts are coloured, and what they are called.

Every object faces +x, stands along z and fits inside the unit sphere. Parts 0 and 1 take the
colours that the caption may name; parts 2 and up have the fixed colours of `FIXED`. To add a
kind, write a builder and add it to `KINDS`; captions, held-out rule and probe follow.
"""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, Key

from dreamjax.toybox.primitives import (
    Primitive,
    box,
    capsule,
    cone,
    cylinder,
    ellipsoid,
    rotation_about,
    torus,
)

COLORS = {
    "red": (0.82, 0.07, 0.07),
    "orange": (0.96, 0.50, 0.05),
    "yellow": (0.95, 0.86, 0.10),
    "green": (0.10, 0.58, 0.15),
    "blue": (0.08, 0.25, 0.85),
    "purple": (0.50, 0.12, 0.66),
    "pink": (0.98, 0.55, 0.72),
    "brown": (0.42, 0.23, 0.09),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
}
MAIN, SECOND, DARK, CARROT, SNOW, WOOD, GLASS = range(7)
FIXED = {
    DARK: COLORS["black"],
    CARROT: COLORS["orange"],
    SNOW: COLORS["white"],
    WOOD: COLORS["brown"],
    GLASS: (0.55, 0.80, 0.95),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of object.

    `main` and `second` are how captions mention the two coloured parts, with `{}` for the colour.
    `usual` is the second part's colour when nobody mentions it: a colour's name, "same" as the
    first, or None where there is no second part. `stated` is the caption with one colour.
    """

    name: str
    build: Callable[[Key[Array, ""]], list[Primitive]]
    usual: str | None = None
    main: str = ""
    second: str = ""
    stated: str = ""
    weight: float = 1.0


def _draws(key: Key[Array, ""], *ranges: tuple[float, float]) -> list[Array]:
    values = jax.random.uniform(key, (len(ranges),))
    return [low + (high - low) * v for v, (low, high) in zip(values, ranges, strict=True)]


def _ball(key):
    (r,) = _draws(key, (0.62, 0.8))
    return [ellipsoid((0, 0, 0), (r, r, r), MAIN)]


def _cube(key):
    r, rounding = _draws(key, (0.45, 0.55), (0.02, 0.08))
    return [box((0, 0, 0), (r, r, r), MAIN, rounding=rounding)]


def _cylinder(key):
    r, h = _draws(key, (0.4, 0.55), (0.4, 0.62))
    return [cylinder((0, 0, 0), r, h, MAIN, rounding=0.03)]


def _donut(key):
    major, minor = _draws(key, (0.5, 0.58), (0.22, 0.3))
    return [
        torus((0, 0, -0.03), major, minor, MAIN),
        torus((0, 0, 0.05), major, minor * 0.97, SECOND),
    ]


def _mushroom(key):
    r, h, stem = _draws(key, (0.58, 0.72), (0.42, 0.58), (0.16, 0.25))
    return [
        ellipsoid((0, 0, 0.05), (r, r, h), MAIN, cut=-0.02),
        cone((0, 0, -0.3), stem * 1.2, stem, 0.38, SECOND, rounding=0.04),
    ]


def _snowman(key):
    low, mid, top, hat = _draws(key, (0.36, 0.42), (0.26, 0.31), (0.19, 0.23), (0.16, 0.24))
    z_low = -0.9 + low
    z_mid = z_low + low * 0.7 + mid * 0.7
    z_top = z_mid + mid * 0.7 + top * 0.75
    z_hat = z_top + top * 0.75
    return [
        ellipsoid((0, 0, z_low), (low, low, low), SNOW),
        ellipsoid((0, 0, z_mid), (mid, mid, mid), SNOW),
        ellipsoid((0, 0, z_top), (top, top, top), SNOW),
        ellipsoid((top * 0.88, 0.09, z_top + 0.07), (0.04, 0.04, 0.04), DARK),
        ellipsoid((top * 0.88, -0.09, z_top + 0.07), (0.04, 0.04, 0.04), DARK),
        cone((top + 0.1, 0, z_top - 0.02), 0.06, 0.01, 0.14, CARROT, rotation_about("y", 90)),
        cylinder((0, 0, z_hat), top * 1.35, 0.035, MAIN, rounding=0.02),
        cylinder((0, 0, z_hat + hat / 2), top * 0.85, hat / 2 + 0.03, MAIN, rounding=0.02),
    ]


def _house(key):
    depth, width, wall = _draws(key, (0.42, 0.55), (0.38, 0.46), (0.28, 0.38))
    side = (width + 0.09) / 2**0.5
    eaves = -0.55 + 2 * wall
    return [
        box((0, 0, -0.55 + wall), (depth, width, wall), MAIN, rounding=0.01),
        box(
            (0, 0, eaves - 0.04),
            (depth + 0.07, side, side),
            SECOND,
            rotation_about("x", 45),
            rounding=0.02,
        ),
        box((depth, 0, -0.35), (0.03, 0.11, 0.2), WOOD, rounding=0.01),
        box((0, 0, eaves + width + 0.05), (0.07, 0.07, 0.16), DARK, rounding=0.01),
    ]


def _tree(key):
    r, trunk = _draws(key, (0.48, 0.6), (0.1, 0.16))
    return [
        cylinder((0, 0, -0.65), trunk, 0.25, SECOND, rounding=0.02),
        cone((0, 0, -0.18), r, r * 0.45, 0.25, MAIN, rounding=0.03),
        cone((0, 0, 0.2), r * 0.8, r * 0.3, 0.24, MAIN, rounding=0.03),
        cone((0, 0, 0.58), r * 0.6, 0.04, 0.27, MAIN, rounding=0.03),
    ]


def _car(key):
    length, width, cabin, wheel = _draws(key, (0.72, 0.8), (0.34, 0.42), (0.34, 0.42), (0.15, 0.2))
    axle = length * 0.58
    flat = rotation_about("x", 90)
    wheels = [
        cylinder((x, y, -0.25), wheel, 0.07, DARK, flat, rounding=0.02)
        for x in (-axle, axle)
        for y in (-width, width)
    ]
    lights = [
        ellipsoid((length - 0.02, y, -0.06), (0.06, 0.07, 0.07), SNOW)
        for y in (-width * 0.65, width * 0.65)
    ]
    return [
        box((0, 0, -0.1), (length, width, 0.17), MAIN, rounding=0.08),
        box((-0.12, 0, 0.19), (cabin, width * 0.85, 0.19), SECOND, rounding=0.08),
        *wheels,
        *lights,
    ]


def _chair(key):
    r, seat, back, leg = _draws(key, (0.36, 0.44), (0.05, 0.08), (0.36, 0.46), (0.05, 0.07))
    legs = [
        box((x, y, -0.45), (leg, leg, 0.35), MAIN, rounding=0.02)
        for x in (-r + leg, r - leg)
        for y in (-r + leg, r - leg)
    ]
    return [
        box((0, 0, -0.08), (r, r, seat), SECOND, rounding=0.03),
        box((-r + 0.06, 0, back), (0.06, r, back), MAIN, rounding=0.03),
        *legs,
    ]


def _mug(key):
    r, h = _draws(key, (0.42, 0.5), (0.42, 0.54))
    return [
        cylinder((0, 0, 0), r, h, MAIN, rounding=0.03),
        cylinder((0, 0, h - 0.02), r * 0.84, 0.03, WOOD, rounding=0.005),
        torus((0, r + 0.08, 0), 0.24, 0.075, SECOND, rotation_about("y", 90)),
    ]


def _teapot(key):
    r, h = _draws(key, (0.46, 0.54), (0.38, 0.44))
    return [
        ellipsoid((0, 0, -0.08), (r, r, h), MAIN),
        cylinder((0, 0, -0.08 - h * 0.85), r * 0.6, 0.06, MAIN, rounding=0.02),
        ellipsoid((0, 0, h * 0.62), (r * 0.55, r * 0.55, 0.13), SECOND),
        ellipsoid((0, 0, h * 0.62 + 0.17), (0.09, 0.09, 0.09), SECOND),
        cone((r + 0.13, 0, 0.06), 0.13, 0.06, 0.26, MAIN, rotation_about("y", 42), rounding=0.02),
        torus((-r - 0.06, 0, -0.02), 0.22, 0.06, MAIN, rotation_about("x", 90)),
    ]


def _rocket(key):
    r, h = _draws(key, (0.23, 0.3), (0.36, 0.46))
    fins = [
        box((x * (r + 0.1), y * (r + 0.1), -h + 0.02), half, SECOND, rounding=0.02)
        for x, y, half in (
            (1, 0, (0.16, 0.04, 0.17)),
            (-1, 0, (0.16, 0.04, 0.17)),
            (0, 1, (0.04, 0.16, 0.17)),
            (0, -1, (0.04, 0.16, 0.17)),
        )
    ]
    return [
        cylinder((0, 0, 0), r, h, MAIN, rounding=0.03),
        cone((0, 0, h + 0.22), r, 0.03, 0.23, SECOND, rounding=0.02),
        ellipsoid((r - 0.02, 0, 0.14), (0.05, 0.12, 0.12), GLASS),
        cone((0, 0, -h - 0.1), r * 0.7, r * 0.5, 0.1, DARK, rounding=0.02),
        *fins,
    ]


def _duck(key):
    length, head = _draws(key, (0.54, 0.64), (0.25, 0.31))
    z = 0.18 + head
    return [
        ellipsoid((-0.08, 0, -0.2), (length, 0.4, 0.36), MAIN),
        ellipsoid((0.26, 0, z), (head, head, head), MAIN),
        ellipsoid((0.26 + head + 0.08, 0, z - 0.05), (0.17, 0.12, 0.055), SECOND),
        ellipsoid((0.26 + head * 0.8, 0.13, z + 0.1), (0.05, 0.05, 0.05), DARK),
        ellipsoid((0.26 + head * 0.8, -0.13, z + 0.1), (0.05, 0.05, 0.05), DARK),
        capsule((-0.6, 0, 0.05), 0.1, 0.26, MAIN, rotation_about("y", -55)),
    ]


def _on(upper: Callable, lower: Callable, foot: Callable) -> Callable:
    """A pair: `upper`, whose lowest point is `foot(its primitives)` below 0, stands on `lower`."""

    def build(key):
        key_upper, key_lower, key_size = jax.random.split(key, 3)
        (scale,) = _draws(key_size, (0.5, 0.58))
        below = [p.moved(0.72, (0, 0, -0.42)).with_part(SECOND) for p in lower(key_lower)]
        top = below[0].center[2] + below[0].size[2]
        above = upper(key_upper)
        lift = top + foot(above) * scale - 0.02
        return [p.moved(scale, (0, 0, lift)) for p in above] + below

    return build


def _pair(upper: str, lower: str, build: Callable) -> Kind:
    return Kind(
        f"{upper} on {lower}",
        build,
        "same",
        f"a {{}} {upper}",
        f"a {{}} {lower}",
        weight=0.5,
    )


KINDS: tuple[Kind, ...] = (
    Kind("ball", _ball),
    Kind("cube", _cube),
    Kind("cylinder", _cylinder),
    Kind("donut", _donut, "same", "{} dough", "{} icing"),
    Kind("mushroom", _mushroom, "white", "a {} cap", "a {} stem"),
    Kind("snowman", _snowman, None, "a {} hat", "", "a snowman with a {} hat"),
    Kind("house", _house, "brown", "{} walls", "a {} roof"),
    Kind("tree", _tree, "brown", "a {} crown", "a {} trunk"),
    Kind("car", _car, "same", "a {} body", "a {} top"),
    Kind("chair", _chair, "same", "{} legs", "a {} seat"),
    Kind("mug", _mug, "same", "a {} body", "a {} handle"),
    Kind("teapot", _teapot, "same", "a {} body", "a {} lid"),
    Kind("rocket", _rocket, "red", "a {} body", "a {} tip"),
    Kind("duck", _duck, "orange", "a {} body", "an {} beak"),
    _pair("ball", "cube", _on(_ball, _cube, lambda ball: ball[0].size[2])),
    _pair("cube", "cylinder", _on(_cube, _cylinder, lambda cube: cube[0].size[2])),
    _pair("donut", "cube", _on(_donut, _cube, lambda donut: donut[0].size[1] + 0.03)),
    _pair("duck", "cylinder", _on(_duck, _cylinder, lambda duck: 0.56)),
    _pair("mushroom", "cube", _on(_mushroom, _cube, lambda mushroom: 0.68)),
)
