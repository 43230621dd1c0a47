"""The schedules against float64 products, published constants and their error messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import (
    Schedule,
    cosine,
    extract,
    linear,
    log_snr_at,
    respaced,
    scaled_linear,
    section_steps,
    t_at,
    zero_terminal_snr,
)
from dreamjax.errors import UserError


@pytest.mark.parametrize(
    ("schedule", "first", "last", "final_alpha_bar"),
    [
        (linear(), 1e-4, 0.02, 4.0358297e-5),  # DDPM
        (scaled_linear(), 0.00085, 0.012, 0.0046600985),  # Stable Diffusion
        (cosine(), 4.1284e-5, 0.999, 2.4287669e-9),  # improved DDPM
    ],
)
def test_published_constants(schedule, first, last, final_alpha_bar):
    assert schedule.num_steps == 1000
    np.testing.assert_allclose(schedule.betas[[0, -1]], [first, last], rtol=1e-4)
    np.testing.assert_allclose(schedule.alpha_bar[-1], final_alpha_bar, rtol=1e-6)


def test_shapes_of_the_schedules():
    np.testing.assert_allclose(np.diff(linear(50).betas, 2), 0.0, atol=1e-16)
    np.testing.assert_allclose(np.diff(np.sqrt(scaled_linear(50).betas), 2), 0.0, atol=1e-15)
    u = np.arange(1, 51) / 50
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine(50).alpha_bar[:-1], f[:-1], rtol=1e-11)  # the last is capped


@pytest.mark.parametrize("schedule", [linear(40), cosine(40), Schedule([0.3, 0.9, 0.2, 0.5])])
def test_derived_quantities(schedule):
    """In float64, and as `extract` looks them up in float32, jitted and not."""
    betas = schedule.betas
    for t in (0, 1, len(betas) // 2, len(betas) - 1):
        alpha_bar = np.prod([1.0 - b for b in betas[: t + 1]])
        before = np.prod([1.0 - b for b in betas[:t]])
        at_one = betas[0] * betas[1] / (betas[0] + betas[1] - betas[0] * betas[1])
        small = (1 - before) / (1 - alpha_bar) * betas[t] if t else at_one
        expected = {
            "alphas": 1 - betas[t],
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": before,
            "variance": 1 - alpha_bar,
            "variance_prev": 1 - before,
            "sqrt_alpha_bar": np.sqrt(alpha_bar),
            "sigma": np.sqrt(1 - alpha_bar),
            "log_snr": np.log(alpha_bar / (1 - alpha_bar)),
            "log_alpha_bar": np.log(alpha_bar),
            "log_betas": np.log(betas[t]),
            "posterior_variance": small if t else 0.0,
            "posterior_log_variance": np.log(small),
            "large_log_variance": np.log(betas[t] if t else small),
            "posterior_x0_scale": np.sqrt(before) * betas[t] / (1 - alpha_bar),
            "posterior_xt_scale": np.sqrt(1 - betas[t]) * (1 - before) / (1 - alpha_bar),
        }
        for name, value in expected.items():
            actual = getattr(schedule, name)
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual[t], value, rtol=1e-11, err_msg=f"{name} at {t}")
            for look_up in (extract, jax.jit(extract, static_argnums=2)):
                np.testing.assert_allclose(look_up(actual, jnp.array([t]), 1), value, rtol=1e-7)


def test_clipped_log_variances():
    schedule = linear(10)
    betas, posterior = schedule.betas, schedule.posterior_variance
    assert posterior[0] == 0.0
    np.testing.assert_allclose(
        np.exp(schedule.posterior_log_variance), [posterior[1], *posterior[1:]], rtol=1e-12
    )
    np.testing.assert_allclose(
        np.exp(schedule.large_log_variance), [posterior[1], *betas[1:]], rtol=1e-12
    )


def test_tiny_betas_keep_their_variance():
    schedule = Schedule(np.full(3, 1e-20))
    np.testing.assert_allclose(schedule.variance, [1e-20, 2e-20, 3e-20], rtol=1e-12)
    np.testing.assert_allclose(schedule.posterior_variance, np.array([0, 1 / 2, 2 / 3]) * 1e-20)


def test_ends_of_the_allowed_range():
    one = Schedule([0.5])
    assert np.isfinite(one.posterior_log_variance).all()
    assert np.isfinite(one.large_log_variance).all()
    full = Schedule([0.5, 1.0])
    assert full.alpha_bar[-1] == 0.0 and full.sigma[-1] == 1.0 and full.log_snr[-1] == -np.inf


@pytest.mark.parametrize(
    ("betas", "words"),
    [
        ([], "non-empty"),
        (0.1, "1-D"),
        ([[0.1, 0.2]], "1-D"),
        ([0.1, 0.0], r"betas\[1\] is 0.0"),
        ([-0.1, 0.1], r"betas\[0\]"),
        ([0.1, 1.0001], r"betas\[1\]"),
        ([0.1, np.nan], r"betas\[1\] is nan"),
        ([0.1, np.inf], r"betas\[1\] is inf"),
        (["a"], "numbers"),
    ],
)
def test_wrong_betas(betas, words):
    with pytest.raises(UserError, match=words):
        Schedule(betas)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("make", [linear, scaled_linear, cosine])
@pytest.mark.parametrize("num_steps", [0, -3, 2.5, np.nan, np.inf])
def test_wrong_number_of_steps(make, num_steps):
    with pytest.raises(UserError, match="whole number of steps"):
        make(num_steps)


def test_is_a_value():
    betas = np.full(4, 0.1)
    schedule = Schedule(betas)
    betas[0] = 0.9  # the caller's array is not the schedule's
    assert schedule == Schedule(np.full(4, 0.1))
    assert hash(schedule) == hash(Schedule(np.full(4, 0.1)))
    assert schedule != Schedule(np.full(5, 0.1))
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha_bar[0] = 1.0


def test_extract():
    values = np.array([0.1, 0.2, 0.3])
    t = jnp.array([2, 0])
    for function in (extract, jax.jit(extract, static_argnums=2)):
        taken = function(values, t, 4)
        assert taken.shape == (2, 1, 1, 1) and taken.dtype == jnp.float32
        np.testing.assert_array_equal(taken.ravel(), np.float32([0.3, 0.1]))


@pytest.mark.usefixtures("unchecked")
def test_extract_of_wrong_timesteps():
    values = np.array([0.1, 0.2, 0.3])
    jitted = jax.jit(extract, static_argnums=2)
    assert np.isnan(jitted(values, jnp.array([3, -1]), 1)).all()
    for wrong in (3, -1):
        with pytest.raises(UserError, match=f"t must be in 0..2; got {wrong}"):
            extract(values, jnp.array([0, wrong]), 1)
    with pytest.raises(UserError, match="array of float32"):
        jitted(values, jnp.array([0.5]), 1)


@pytest.mark.parametrize("schedule", [linear(), scaled_linear(), cosine()], ids="lsc")
def test_zero_terminal_snr(schedule):
    rescaled = zero_terminal_snr(schedule)
    old, new = np.sqrt(np.cumprod(1 - schedule.betas)), rescaled.sqrt_alpha_bar
    assert new[-1] == 0.0 and rescaled.betas[-1] == 1.0
    np.testing.assert_allclose(new[0], old[0], rtol=1e-12)
    # An affine map of the root of alpha_bar, so that differences keep their ratios.
    np.testing.assert_allclose(np.diff(new) / np.diff(old), old[0] / (old[0] - old[-1]), rtol=1e-6)
    with pytest.raises(UserError, match="at least 2"):
        zero_terminal_snr(linear(1))


@pytest.mark.parametrize("steps", [[0], [9], [0, 3, 4, 9], list(range(10))])
def test_respaced_keeps_alpha_bar_at_its_steps(steps):
    schedule = linear(10, 0.01, 0.4)
    short = respaced(schedule, steps)
    alpha_bar = np.cumprod(1 - schedule.betas)[steps]
    np.testing.assert_allclose(np.cumprod(1 - short.betas), alpha_bar, rtol=1e-12)
    if len(steps) == 10:
        np.testing.assert_allclose(short.betas, schedule.betas, rtol=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([3, 1], r"steps must rise within 0..9; got \[3, 1\]"),
        ([1, 1], r"steps must rise within 0..9; got \[1, 1\]"),
        ([0, 10], r"0..9; got \[0, 10\]"),
        ([-1, 1], r"0..9; got \[-1, 1\]"),
        (np.array([3, 1], np.uint8), r"0..9; got array\(\[3, 1\]"),
        ([0.5], r"whole timesteps; got \[0.5\]"),
        ([], "non-empty"),
    ],
)
def test_steps_that_cannot_be(steps, says):
    with pytest.raises(UserError, match=says):
        respaced(linear(10), steps)


def test_section_steps_as_the_papers_code_has_them():
    np.testing.assert_array_equal(section_steps(1000, "ddim50"), np.arange(0, 1000, 20))
    # Sections of 4, 3, 3 steps, both ends of each taken.
    np.testing.assert_array_equal(section_steps(10, "2,3,1"), [0, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(section_steps(300, [10, 15, 20])[[0, 9, 10, 24, 25, 44]], [
        0, 99, 100, 199, 200, 299,
    ])  # fmt: skip
    np.testing.assert_array_equal(section_steps(1000, "1000"), np.arange(1000))
    # 0, 2.5, 5 ... rounded half to even, as Python rounds.
    np.testing.assert_array_equal(section_steps(11, "5"), [0, 2, 5, 8, 10])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ("ddim1", "no whole stride takes 1 of 1000"),
        ("ddim300", "no whole stride takes 300 of 1000"),
        ("ddimmer", "ddimmer"),
        ("10,x", "10,x"),
        ("600,2", "section 0 has 500 steps and cannot give 600"),
        ("0", "cannot give 0"),
        ([400, 400, 400], "section 0 has 334 steps and cannot give 400"),
        ([2.5], "section 0 has 1000 steps and cannot give 2.5"),
        ([], r"non-empty list of whole numbers; got \[\]"),
        ("", "whole numbers like .*; got ''"),
        ("1\u00b2", "whole numbers like"),
    ],
)
def test_sections_that_cannot_be(sections, says):
    with pytest.raises(UserError, match=says):
        section_steps(1000, sections)


@pytest.mark.parametrize("schedule", [linear(), cosine(), zero_terminal_snr(scaled_linear())])
def test_log_snr_at_real_times(schedule):
    with np.errstate(divide="ignore"):
        table = np.log(schedule.alpha_bar) - np.log1p(-schedule.alpha_bar)
    table = np.maximum(table, -80.0)  # where nothing is left of x_0
    times = np.array([0.0, 0.3, 1.0, 17.0, 300.5, 500.0, 512.625, 998.0, 999.0])
    expected = np.interp(times, np.arange(1000), table)
    slope = np.abs(np.diff(table))[np.minimum(times, 998).astype(int)]
    for jit in (lambda f: f, jax.jit):
        at, back = jit(lambda t: log_snr_at(schedule, t)), jit(lambda x: t_at(schedule, x))
        np.testing.assert_allclose(at(jnp.float32(times)), expected, rtol=1e-6, atol=2e-6)
        # Turning it round divides by the slope, down to 0.006 a step.
        error = np.abs(back(jnp.float32(expected)) - times)
        assert (error <= 1e-5 * np.maximum(1.0, np.abs(expected)) / np.minimum(slope, 1)).all()
        assert back(1e3) == 0 and back(-1e3) == 999


def test_log_snr_of_times_out_of_range():
    schedule = linear(10)
    for wrong in (-0.5, 9.5, np.nan):
        with pytest.raises(UserError, match=f"t must be in 0..9; got {wrong}"):
            log_snr_at(schedule, jnp.array([0.0, wrong]))
    jitted = jax.jit(log_snr_at, static_argnums=0)
    assert np.isnan(jitted(schedule, jnp.array([-0.5, 9.5]))).all()
