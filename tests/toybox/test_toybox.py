"""Kinds, captions, draws and pictures of the toybox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.priors.toybox import tokenise
from dreamjax.scene.backgrounds.backdrops import Backdrop
from dreamjax.scene.camera import orbit
from dreamjax.scene.shading import Shading
from dreamjax.toybox import captions, draw
from dreamjax.toybox.kinds import COLORS, KINDS
from dreamjax.toybox.primitives import ellipsoid, pack, signed_distance
from dreamjax.toybox.render import render

SIZE = 24


@pytest.fixture(scope="module")
def examples():
    """Draws of all three splits, 64 each, from one compiled program."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(64))
    drawer = jax.jit(
        lambda split: jax.lax.map(lambda key: draw.draw_example(key, SIZE, split), keys)
    )
    return {split: jax.device_get(drawer(split)) for split in (draw.TRAIN, draw.HELD_OUT)}


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[kind.name for kind in KINDS])
def test_objects_fit_the_unit_sphere_and_are_not_empty(kind):
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 41)] * 3, indexing="ij"), -1).reshape(
        -1, 3
    )
    shape = draw.build_shape(jax.random.key(kind), jnp.int32(kind))
    d, _ = jax.jit(signed_distance)(shape, tuple(jnp.asarray(grid.T, jnp.float32)))
    inside = np.asarray(d) < 0
    assert inside.sum() > 100
    assert np.linalg.norm(grid[inside], axis=1).max() <= 1.0


def test_a_house_looks_the_same_from_both_sides():
    # Captions call both "side view": what they show must not depend on which it is.
    house = next(i for i, kind in enumerate(KINDS) if kind.name == "house")
    shape = draw.build_shape(jax.random.key(2), jnp.int32(house))
    x, y, z = np.random.default_rng(0).uniform(-1.0, 1.0, (3, 500)).astype(np.float32)
    distance = jax.jit(lambda point: signed_distance(shape, point))
    (here, part), (mirrored, other) = distance((x, y, z)), distance((x, -y, z))
    np.testing.assert_allclose(here, mirrored, atol=1e-5)
    assert np.mean(np.asarray(part) == np.asarray(other)) > 0.99  # ties aside


RADIUS, DISTANCE, FOCAL = 0.6, 3.0, 1.3


@pytest.fixture(scope="module")
def ball():
    """A ball's picture with the light at the camera, and the direction towards both."""
    camera = orbit(30.0, 20.0, DISTANCE, FOCAL)
    light = Shading(camera.position, jnp.float32(0.2), jnp.float32(0.8), jnp.float32(0.0))
    backdrop = Backdrop(jnp.zeros(3), jnp.zeros(3))
    shape = pack([ellipsoid((0, 0, 0), (RADIUS,) * 3, 0)])
    picture = jax.jit(lambda: render(shape, jnp.ones((7, 3)), camera, light, backdrop, 64))()
    return picture, np.asarray(camera.position) / DISTANCE


def test_a_ball_has_its_closed_form_depth_normals_and_light(ball):
    picture, towards = ball
    middle = picture.depth[31:33, 31:33].mean()
    assert middle == pytest.approx(DISTANCE - RADIUS, abs=2e-3)
    np.testing.assert_allclose(picture.normal[31:33, 31:33].mean((0, 1)), towards, atol=2e-2)
    # The light is at the camera: full in the middle, ambient alone at the rim.
    assert picture.rgb[32, 32, 0] == pytest.approx(1.0, abs=5e-3)


def test_a_ball_has_its_closed_form_silhouette(ball):
    seen_radius = FOCAL * RADIUS / np.sqrt(DISTANCE**2 - RADIUS**2)
    assert ball[0].mask.mean() == pytest.approx(np.pi * seen_radius**2, rel=0.01)


def test_pictures_agree_with_their_ground_truth(examples):
    picture = examples[draw.TRAIN].picture
    solid = picture.mask == 1.0
    assert 0.03 < picture.mask.mean() < 0.6
    lengths = np.linalg.norm(picture.normal[solid], axis=-1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-4)
    assert (picture.depth[solid] > 1.5).all() and (picture.depth[picture.mask == 0] == 0).all()
    plain = examples[draw.TRAIN].look == 0
    shown, albedo = picture.rgb[plain][solid[plain]], picture.albedo[plain][solid[plain]]
    np.testing.assert_allclose(shown, albedo, atol=1e-5)


@pytest.mark.slow
def test_a_draw_depends_on_its_key_alone(examples):
    key = jax.random.fold_in(jax.random.key(5), 7)
    again = jax.jit(lambda k: draw.draw_example(k, SIZE, draw.TRAIN))(key)
    np.testing.assert_allclose(again.picture.rgb, examples[draw.TRAIN].picture.rgb[7], atol=1e-5)
    np.testing.assert_array_equal(again.tokens, examples[draw.TRAIN].tokens[7])


def test_held_out_combinations_are_disjoint_and_one_in_ten(examples):
    def combinations(split):
        e = examples[split]
        return {(int(k), *map(int, c)) for k, c in zip(e.kind, e.colors, strict=True)}

    assert not combinations(draw.TRAIN) & combinations(draw.HELD_OUT)
    assert all(draw.is_held_out(*c) for c in combinations(draw.HELD_OUT))
    possible = [tuple(c) for c in np.argwhere(draw.combination_weights(draw.ALL) > 0)]
    share = np.mean([draw.is_held_out(*map(int, c)) for c in possible])
    assert 0.07 < share < 0.13
    trained, held = (draw.combination_weights(s) > 0 for s in (draw.TRAIN, draw.HELD_OUT))
    assert not (trained & held).any() and (trained | held).sum() == len(possible)


def test_emphasis_draws_a_kind_that_much_more_often():
    draws = draw.Draws(emphasis=(("house", 9.0),))
    keys = jax.random.split(jax.random.key(3), 4000)
    kinds = jax.jit(jax.vmap(lambda k: draw.draw_example(k, SIZE, draw.TRAIN, draws).kind))(keys)
    house = [kind.name for kind in KINDS].index("house")
    # Training draws kinds alike: 9 shares of 9 + 18. Four standard deviations are 0.03.
    assert np.mean(kinds == house) == pytest.approx(9 / (len(KINDS) + 8), abs=0.03)
    assert set(np.unique(kinds)) == set(range(len(KINDS)))


@pytest.mark.parametrize(
    ("emphasis", "said"),
    [((("hous", 2.0),), "there are ball, cube"), ((("ball", 0.0),), r"\[1\] is 0.0: .* above 0")],
)
def test_a_wrong_emphasis_is_refused(emphasis, said):
    with pytest.raises(UserError, match=said):
        draw.Draws(emphasis=emphasis)


def test_textureless_pictures_come_that_much_more_often():
    before = draw.Draws().light
    after = draw.more_textureless(before, 3.0)

    def shares(light):
        lit = light.shaded * (1 - light.textureless)
        return np.array([1 - light.shaded, lit, light.shaded * light.textureless])

    expected = shares(before) * [1, 1, 3]
    np.testing.assert_allclose(shares(after), expected / expected.sum(), rtol=1e-12)
    same = draw.more_textureless(before, 1.0)
    np.testing.assert_allclose(shares(same), shares(before), rtol=1e-12)


def test_captions_name_what_is_shown(examples):
    for split in examples:
        e = examples[split]
        for i in range(len(e.kind)):
            text = captions.text_of(e.tokens[i]).split()
            assert set(KINDS[e.kind[i]].name.replace(" on ", " ").split()) <= set(text)
            named = {COLORS_LIST[c] for c in e.colors[i]}
            # The duck's beak and the rest are colour words only as colours.
            assert set(text) & set(COLORS) <= named
            if e.look[i] == 2:
                assert not set(text) & set(COLORS)
            sides = {word for word in ("front", "side", "back", "behind") if word in text}
            off = np.degrees(np.arccos(np.cos(np.radians(e.camera.azimuth[i]))))
            assert sides in ALLOWED_SIDES[int(off // 22.5)], (text, off)
            height = e.camera.elevation[i]
            said = " ".join(text)
            if sides and "overhead" not in text:
                assert said.endswith("view from above") == (15 < height <= 37.5), (said, height)
                assert said.endswith("top view") == (37.5 < height <= 60), (said, height)
            if "overhead" in text or (not sides and said.endswith("from above")):
                assert height > 60, (said, height)


# What a caption may say of the side at 0 to 22.5 degrees off the front, at 22.5 to 45, and so on:
# a name reaches 22.5 degrees either way. A caption may also leave it out.
_NAMED = ({"front"}, {"front", "side"}, {"side"}, {"back", "side"}, {"back"})
ALLOWED_SIDES = [[set(), _NAMED[(n + 1) // 2], *([{"behind"}] if n == 7 else [])] for n in range(8)]


COLORS_LIST = list(COLORS)


def test_the_priors_tokens_are_the_grammars():
    text = "an orange ball on a blue cube, side view."
    tokens = tokenise(text, captions.VOCABULARY, captions.MAX_WORDS)
    assert captions.text_of(tokens) == "a orange ball on a blue cube side view"


def test_colorless_leaves_no_colour_and_everything_else():
    for text, expected in (
        ("a red mushroom with a white stem", "a mushroom with a stem"),
        ("An Orange ball on a blue cube, side view", "An ball on a cube, side view"),
        ("a snowman", "a snowman"),
        ("a redbrick house with an evergreen tree", "a redbrick house with an evergreen tree"),
    ):
        assert captions.colorless(text) == expected


def test_every_phrase_fits_and_has_words():
    longest = np.sum(captions._PHRASE_TABLE != 0, axis=-1)
    assert longest.min() >= 2
    views = np.sum(captions._VIEW_TABLE != 0, axis=-1)
    assert longest.max() + 4 + views.max() <= captions.MAX_WORDS
