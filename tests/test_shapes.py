"""The check of annotations that the whole suite runs under does refuse wrong shapes."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.schedule import linear
from dreamjax.scene.camera import orbit
from dreamjax.scene.rays import camera_rays


def test_axes_of_one_name_have_one_size():
    x, t = jnp.zeros((2, 4, 4, 3)), jnp.array([0, 9])
    assert q_sample(linear(10), x, t, x).shape == x.shape
    for wrong_t, eps in ((t[:1], x), (t, x[:, :, :1]), (jnp.zeros(2), x)):
        with pytest.raises(TypeCheckError, match="dreamjax.diffusion.process.q_sample"):
            q_sample(linear(10), x, wrong_t, eps)


def test_the_fields_of_a_named_tuple_are_looked_at():
    camera = orbit(0.0, 0.0, 3.0, 1.0)
    assert camera_rays(camera, 4).direction.shape == (4, 4, 3)
    with pytest.raises(TypeCheckError, match="camera_rays"):
        camera_rays(camera._replace(focal=jnp.ones(2)), 4)
