"""Classifier-free guidance in both of its published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.guidance import classifier_free


@pytest.mark.parametrize("s", [0.0, 1.0, 7.5, 101.0])
def test_both_forms(s):
    rng = np.random.default_rng(1)
    cond, uncond = rng.standard_normal((2, 4, 3, 3))
    w = s - 1.0
    expected = (1 + w) * cond - w * uncond
    for function in (classifier_free, jax.jit(classifier_free)):
        found = function(jnp.float32(cond), jnp.float32(uncond), s)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + s))
