"""The white background."""

import jax
import numpy as np

from dreamjax.scene.backgrounds.base import Background
from dreamjax.scene.backgrounds.white import White
from dreamjax.settings import convert


def test_it_is_white_everywhere():
    white = convert(Background, White(), "background")
    behind = white(white.init(jax.random.key(0)), jax.random.key(1), np.zeros((2, 3, 3)))
    assert behind.shape == (white.each, 2, 3, 3) and (np.asarray(behind) == 1.0).all()
