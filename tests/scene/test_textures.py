"""Random textures: their colours, edges, spectrum and blur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dreamjax.scene.backgrounds.textures import blur, checkerboard, fourier, noise, random_texture

KEYS = jax.random.split(jax.random.key(0), 200)


@pytest.fixture(scope="module")
def drawn():
    draws = {"noise": noise, "checkerboard": checkerboard, "fourier": fourier}
    return {
        name: np.asarray(jax.jit(jax.vmap(lambda k, d=draw: d(k, 32)))(KEYS), np.float64)
        for name, draw in draws.items()
    }


def test_all_are_colours_and_none_is_like_another(drawn):
    for rgb in drawn.values():
        assert rgb.shape == (200, 32, 32, 3) and rgb.min() >= 0.0 and rgb.max() <= 1.0
        assert (np.abs(rgb[1:] - rgb[:-1]).mean((1, 2, 3)) > 0.01).all()


def test_noise_is_uniform_and_white(drawn):
    rgb = drawn["noise"]
    assert rgb.mean() == pytest.approx(0.5, abs=0.01)
    assert rgb.std() == pytest.approx(12**-0.5, abs=0.01)
    assert np.corrcoef(rgb[:, :, 1:].ravel(), rgb[:, :, :-1].ravel())[0, 1] == pytest.approx(
        0.0, abs=0.01
    )


def test_a_checkerboard_has_two_colours_and_eight_squares(drawn):
    rgb = drawn["checkerboard"]
    number = np.arange(32) // 4
    odd = (number[:, None] + number) % 2 == 1
    for part in (odd, ~odd):
        assert np.ptp(rgb[:, part], axis=1).max() == 0.0
    first, second = rgb[:, 0, 4], rgb[:, 0, 0]
    assert np.abs(first - second).mean() == pytest.approx(1 / 3, abs=0.05)
    uneven = np.asarray(checkerboard(KEYS[0], 21))
    assert len(np.unique(uneven.reshape(-1, 3), axis=0)) == 2


def test_a_fourier_texture_has_the_spectrum_of_its_decay(drawn):
    rgb = drawn["fourier"]
    field = np.log(rgb / (1.0 - rgb))
    assert field.std() == pytest.approx(2.0, abs=0.2)
    power = np.mean(np.abs(np.fft.fft2(field, axes=(1, 2))) ** 2, axis=(0, 3))
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    inside = (frequency > 2 / 32) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-3.0, abs=0.15)
    # Mostly brightness: the channels go together, but not quite.
    together = np.corrcoef(field.reshape(-1, 3).T)
    assert 0.5 < together.min() < 0.95


@pytest.mark.parametrize("size, deviation", [(32, 0.8), (64, 0.7)])
def test_blur_is_a_gaussian(size, deviation):
    rgb = np.random.default_rng(0).uniform(size=(size, size, 3))
    reach = max(1, round(size * 7 / 224))
    expected = gaussian_filter(rgb, (deviation, deviation, 0), radius=(reach, reach, 0))
    found = np.asarray(blur(jnp.float32(rgb), jnp.float32(deviation)))
    inside = slice(reach, size - reach)
    np.testing.assert_allclose(found[inside, inside], expected[inside, inside], atol=1e-5)
    assert np.abs(found - rgb).mean() > 0.05


def test_blur_keeps_what_has_nothing_to_blur():
    rgb = np.random.default_rng(1).uniform(size=(16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(blur(jnp.asarray(rgb), 0.0), rgb, rtol=1e-6)
    flat = jnp.full((16, 16, 3), 0.3)
    np.testing.assert_allclose(blur(flat, 5.0), flat, rtol=1e-5)


def test_random_textures_are_of_each_kind_and_of_many_blurs():
    draw = jax.jit(jax.vmap(lambda k: random_texture(k, 32)))
    rgb = np.asarray(draw(KEYS))
    assert np.isfinite(rgb).all() and rgb.min() >= 0.0 and rgb.max() <= 1.0 + 1e-6
    roughness = np.abs(np.diff(rgb, axis=1)).mean((1, 2, 3))
    assert len(np.unique(roughness)) > 190 and roughness.max() > 10 * roughness.min()
    np.testing.assert_allclose(draw(KEYS[::-1])[::-1], rgb, atol=1e-5)
