"""Values that a scene's settings refuse, each in one line that names the field."""

import re

import pytest

from dreamjax.clock import Ramp
from dreamjax.errors import UserError
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.backgrounds.textures import Textures
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Blob, Contrast, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Entropy, Opacity, Orientation, Smoothness, Transmittance
from dreamjax.scene.render import Renderer
from dreamjax.scene.shading import Light

INFINITY, NAN = float("inf"), float("nan")
NO_LENGTHS = (-1.0, 0.0, INFINITY, NAN, 1e9, "1m")

BAD = {
    (Mlp, "width"): (0, -1, 10**9, 64.0, True),
    (Mlp, "blocks"): (-1, 10**9, 1.5),
    (Mlp, "min_deg"): (-1, 10**9),
    (Mlp, "max_deg"): (0, -1, 10**9, 8.0),
    (Mlp, "dtype"): ("zzz", "int8", "float64", 32),
    (Density, "bias"): (INFINITY, -INFINITY, NAN, 1e9, None),
    (Density, "blob"): (Contrast(), 5.0),
    (Density, "contrast"): (Blob(), 4.0),
    (Blob, "strength"): (-1.0, INFINITY, NAN, 1e9),
    (Blob, "width"): NO_LENGTHS,
    (Contrast, "power"): (
        Ramp(1.0, 1e9), Ramp(1.0, 101.0), Ramp(0.0, 4.0), Ramp(-1.0, 4.0), 0.0,
        1e30, INFINITY, NAN, "4", Blob(),
    ),
    (Contrast, "pivot"): (0.0, -1.0, INFINITY, NAN, 1e30),
    (Renderer, "samples"): (0, -1, 10**6, 32.0),
    (Renderer, "normal_samples"): (0, -1, 33, 10**6),
    (Renderer, "radius"): NO_LENGTHS,
    (Renderer, "frustum"): (1, "yes"),
    (Renderer, "chunk"): (-1, 10**9, 256.0),
    (Renderer, "variance"): (Ramp(-0.1, 0.1), Ramp(0.1, -0.1), Ramp(0.1, 1e9), -1.0, INFINITY),
    (Cameras, "distance"): (
        *[(bad, 3.0) for bad in NO_LENGTHS], (2.0, INFINITY), (2.0, 1e9), (3.4, 2.8), (3.0,), 3.0,
    ),
    (Cameras, "elevation"): ((-91.0, 80.0), (-10.0, 91.0), (80.0, -10.0), (0.0, INFINITY), 30.0),
    (Cameras, "area_uniform"): (-0.1, 1.1, NAN),
    (Cameras, "focal"): (
        (0.0, 1.0), (-1.0, 1.0), (1.0, INFINITY), (1.0, 1e9), (1.4, 1.2), (NAN, 1.0),
    ),
    (Cameras, "jitter_position"): (-0.1, INFINITY, NAN, 1.7),
    (Cameras, "jitter_look_at"): (-0.1, INFINITY, NAN, 2.8),
    (Cameras, "jitter_up"): (-0.1, INFINITY, NAN, 2.0),
    (Light, "distance"): ((0.0, 1.0), (-1.0, 1.0), (1.0, INFINITY), (1.0, 1e9), (4.0, 2.5), 3.0),
    (Light, "spread"): (-0.1, INFINITY, NAN, 1e9),
    (Light, "ambient"): (-0.1, 1.1, INFINITY, NAN),
    (Light, "diffuse"): (-0.1, 1.1, INFINITY, NAN),
    (Light, "shaded"): (-0.1, 1.1, NAN),
    (Light, "textureless"): (-0.1, 1.1, NAN),
    (Learned, "width"): (0, -1, 10**9),
    (Learned, "depth"): (-1, 10**9),
    (Textures, "each"): (0, -1, 10**9),
    (Transmittance, "target"): ((0.6, 0.0), (-0.1, 0.1), (1.1, 0.1), (NAN, 0.1), 0.5),
    (Transmittance, "over"): ((0.5, 0.1), (-0.1, 0.1), (0.0, 1.1)),
    **{
        (penalty, "weight"): (Ramp(-1.0, 1.0), Ramp(1.0, -1.0), -1.0, "much")
        for penalty in (Orientation, Opacity, Entropy, Smoothness, Transmittance)
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [(cls, field, value) for (cls, field), values in BAD.items() for value in values],
    ids=lambda part: part.__name__ if isinstance(part, type) else str(part)[:30],
)
def test_a_senseless_value_is_refused_in_one_line_that_names_the_field(cls, field, value):
    with pytest.raises(UserError, match=rf"^{re.escape(field)}\b") as caught:
        cls(**{field: value})
    assert "\n" not in str(caught.value)


def test_an_encoding_without_degrees_is_refused():
    with pytest.raises(UserError, match="max_deg is 3: expected above min_deg, 3"):
        Mlp(min_deg=3, max_deg=3)


def test_lit_views_need_light():
    with pytest.raises(UserError, match="ambient and diffuse are both 0"):
        Light(ambient=0.0, diffuse=0.0)
    Light(ambient=0.0, diffuse=0.0, shaded=0.0)


def test_a_camera_cannot_be_shaken_into_what_it_looks_at():
    Cameras(distance=(1.0, 1.5), jitter_position=0.1, jitter_look_at=0.2)  # DreamFusion
    with pytest.raises(UserError, match="jitter_position is 0.6: expected below"):
        Cameras(distance=(1.0, 1.5), jitter_position=0.6)


@pytest.mark.parametrize(
    "part",
    [
        Mlp(width=128, blocks=5, max_deg=8),  # DreamFusion
        Mlp(blocks=0, min_deg=15, max_deg=16, dtype="float16"),
        Density(bias=-0.367, blob=None),  # Dream Fields
        Density(contrast=Contrast(power=1)),  # a number is a constant ramp
        Renderer(samples=192, normal_samples=192, frustum=True, chunk=0, variance=0.0),
        Cameras(distance=[4, 4], elevation=(-90, 90), focal=(5 / 3, 5 / 3)),
        Light(ambient=1, diffuse=0),
        Orientation(weight=Ramp(10, 1000, (0, 0.5))),  # threestudio
        Transmittance(weight=0.5, target=(0.6, 0.12)),  # Dream Fields
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_is_published_and_what_lies_at_the_ends_of_ranges_is_taken(part):
    assert part == type(part)(**vars(part))
    assert hash(part) == hash(type(part)(**vars(part)))
