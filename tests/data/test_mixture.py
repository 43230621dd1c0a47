"""Which pictures are trained on: shares, held-out pairs, views and models, and repeatability."""

import jax
import numpy as np
import pytest

from dreamjax.data import mixture
from dreamjax.data.captions import is_held_out
from dreamjax.data.meshes import PictureSet
from dreamjax.data.pictures import looks_of
from dreamjax.data.toybox import ToyboxSet
from dreamjax.errors import UserError
from dreamjax.scene.camera import Camera
from dreamjax.scene.shading import Light

SIZE, VIEWS = 4, 5
MIXING = mixture.Mixing()
LIGHT = Light(shaded=0.55, textureless=0.25)


def cameras(*shape: int) -> Camera:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(*shape, 15)).astype(np.float32)
    rotation = numbers[..., 3:12].reshape(*shape, 3, 3)
    return Camera(numbers[..., :3], rotation, *(numbers[..., k] for k in (12, 13, 14)))


def pictures(phrases) -> PictureSet:
    """Each picture's bytes name its mesh and its view."""
    count = len(phrases)
    stored = np.zeros((count, VIEWS, SIZE, SIZE, 11), np.uint8)
    stored[..., 0] = np.arange(count)[:, None, None, None]
    stored[..., 1] = np.arange(VIEWS)[:, None, None]
    names = tuple(f"pack/model_{i}" for i in range(count))
    share = np.full(count, 0.8)
    return PictureSet(
        tuple(phrases), names, stored, cameras(count, VIEWS), np.full((count, 3), 0.5), share
    )


def toybox(count: int = 6) -> ToyboxSet:
    stored = np.full((count, SIZE, SIZE, 11), 255, np.uint8)
    texts = tuple(f"a red ball {i}" for i in range(count))
    return ToyboxSet(stored, cameras(count), texts, ("a clay ball",) * count)


def numbers(text: str) -> np.ndarray:
    """A tokeniser for tests: the text's letters."""
    ids = [ord(c) for c in text][:80]
    return np.array(ids + [0] * (80 - len(ids)), np.int32)


def text_of(ids) -> str:
    return "".join(chr(i) for i in ids if i)


PHRASES = ["a cow", "a red couch", "an orange", *["a tree"] * 30]


def make(mixing=MIXING, toys=True, left_out=frozenset()):
    toys = toybox() if toys else None
    return mixture.Mixture(pictures(PHRASES), toys, numbers, mixing, LIGHT, left_out)


def test_a_batch_is_a_function_of_its_seed():
    mix = make()
    first, again, other = (mix.batch(seed, 16) for seed in ((0, 3), (0, 3), (0, 4)))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.stored, other.stored)
    assert first.stored.shape == (16, SIZE, SIZE, 11) and first.camera.rotation.shape == (16, 3, 3)


def test_shares_of_the_mixture():
    mix = make()
    rng = np.random.default_rng(0)
    drawn = [mix.choose(rng) for _ in range(6000)]
    toys = np.array([c.mesh < 0 for c in drawn])
    looks = np.bincount([c.look for c in drawn], minlength=3) / len(drawn)
    assert 0.23 < toys.mean() < 0.27
    np.testing.assert_allclose(looks, looks_of(LIGHT), atol=0.02)
    cows = np.array([c.mesh == 0 for c in drawn])
    trees = np.array([c.mesh >= 3 for c in drawn])
    # Thirty trees weigh as 30^0.4 single meshes, less those that are held out.
    trained = sum(mix._usable >= 3)
    expected = trained * 30**-0.6
    assert trees.sum() / cows.sum() == pytest.approx(expected, rel=0.15)
    recolored = [c for c in drawn if c.color >= 0]
    assert 0.2 < len(recolored) / (~toys).sum() < 0.32


def test_held_out_pairs_views_and_models_are_never_trained_on():
    mix = make(mixture.Mixing(recolored=1.0))
    rng = np.random.default_rng(1)
    drawn = [mix.choose(rng) for _ in range(4000)]
    held_out = set(mix.held_out_models.tolist())
    assert held_out and all(PHRASES[m] == "a tree" for m in held_out)
    for c in drawn:
        if c.mesh < 0:
            continue
        assert c.view < VIEWS - 2 and c.mesh not in held_out
        assert PHRASES[c.mesh] != "an orange" or c.color == -1
        if c.color >= 0:
            name = mixture.COLOR_NAMES[c.color]
            assert not is_held_out(PHRASES[c.mesh], name) and name in c.caption.split()


def test_validation_is_of_what_is_not_trained_on():
    mix = make()
    batches = mix.validation(40)
    assert set(batches) == {"views", "pairs", "models"}
    views, pairs, models = batches["views"], batches["pairs"], batches["models"]
    assert (views.stored[:, 0, 0, 1] >= VIEWS - 2).all()
    assert set(models.stored[:, 0, 0, 0]) <= set(mix.held_out_models)
    assert (pairs.recolor.on == 1.0).all() and (views.recolor.on == 0.0).all()
    for mesh, ids in zip(pairs.stored[:, 0, 0, 0], pairs.ids, strict=True):
        colors = [c for c in mixture.COLOR_NAMES if c in text_of(ids).split()]
        assert any(is_held_out(PHRASES[mesh], color) for color in colors)
    np.testing.assert_array_equal(mix.validation(40)["pairs"].stored, pairs.stored)


def test_a_mesh_without_a_colour_of_its_own_keeps_its_colours():
    mix = make()
    mix.meshes = mix.meshes._replace(share=np.full(len(PHRASES), 0.2))
    assert mix.colors_of(0, False) == []


def test_left_out_meshes_are_never_drawn():
    mix = make(toys=False, left_out=frozenset({"pack/model_0"}))
    rng = np.random.default_rng(0)
    assert all(mix.choose(rng).mesh > 0 for _ in range(500))
    with pytest.raises(UserError, match="no picture of a mesh is left"):
        make(left_out=frozenset(f"pack/model_{i}" for i in range(len(PHRASES))))


def test_shares_that_cannot_be_meant():
    with pytest.raises(UserError, match="toybox is 1.5"):
        mixture.Mixing(toybox=1.5)
