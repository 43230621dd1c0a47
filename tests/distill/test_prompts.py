"""View-dependent text."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import linear
from dreamjax.distill.prompts import embed_views, view_prompts
from dreamjax.errors import UserError
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.scene.camera import VIEW_WORDS


def test_view_prompts():
    assert view_prompts(" a red ball ") == [
        "a red ball, front view",
        "a red ball, side view",
        "a red ball, back view",
        "a red ball, overhead view",
    ]
    assert len(VIEW_WORDS) == 4
    for empty in ("", "  "):
        with pytest.raises(UserError, match="empty"):
            view_prompts(empty)


def test_embed_views():
    prompts = ("", "ugly", *view_prompts("a red ball"))
    mu = jnp.arange(6.0)[:, None, None, None] * jnp.ones((1, 2, 2, 3))
    prior = AnalyticPrior(linear(), 2, prompts)
    params = AnalyticParams(mu, jnp.ones((2, 2, 3)))
    for negative, row in (("", 0.0), (" ugly ", 1.0)):
        text, null = embed_views(prior, params, "a red ball", negative)
        assert text.tokens.shape == (4, 1, 12) and text.mask.shape == (4, 1)
        assert null.tokens.shape == (1, 1, 12) and null.mask.shape == (1, 1)
        np.testing.assert_array_equal(text.tokens[:, 0, 0], [2.0, 3.0, 4.0, 5.0])
        np.testing.assert_array_equal(null.tokens[0, 0], row)
    with pytest.raises(UserError, match="a tree, front view"):
        embed_views(prior, params, "a tree")
