"""Dream Fields' objective against float64 NumPy, and with a tiny CLIP against differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock
from dreamjax.distill.dream_fields import DreamFields
from dreamjax.distill.objective import Frozen
from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from dreamjax.priors.base import Prompt
from dreamjax.priors.clip import MEAN, STD, Clip
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views
from dreamjax.settings import settings

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(3)
SIZE, SEEN = 12, 16  # of renderings, and of what the network sees
SETTINGS = DreamFields(crop=(0.5, 0.9))
NOW = Clock(0, 1)


class Linear:
    """A network that is one matrix, with the two words "a" and "b"; notes what it is shown."""

    image_size = SEEN

    def __init__(self, params=None):
        self.shown, self.params = [], params

    def load(self):
        return self.params

    def embed(self, params, prompt):
        return params["words"]["ab".index(prompt.text)]

    def image_features(self, params, rgb):
        self.shown.append(rgb)
        x = jnp.matmul(
            rgb.reshape(len(rgb), -1), params["matrix"], precision=jax.lax.Precision.HIGHEST
        )
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def make_views(index):
    index = jnp.asarray(index)
    camera = jax.vmap(lambda i: orbit(30.0 * i, 0.0, 3.0, 1.2))(index)
    return Views(camera, index, jnp.zeros(len(index)), jnp.zeros(len(index)))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    words = unit(rng.standard_normal((2, 5)))
    matrix = rng.standard_normal((SEEN * SEEN * 3, 5))
    network = {"words": jnp.float32(words), "matrix": jnp.float32(matrix)}
    return DreamFields().load(Linear(network), Prompt("b"))


@functools.cache
def compiled(config):
    def value(rgb, params, views, key):
        network = Linear()
        losses = config.loss(network, params, {}, rgb, views, key, NOW, False)
        return losses.scene, (losses.metrics, network.shown[-1])

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def run(rgb, params, views, key=KEY, config=SETTINGS):
    """Loss, its gradient in rgb, and what the network was shown."""
    (loss, (metrics, shown)), gradient = compiled(config)(jnp.float32(rgb), params, views, key)
    assert set(metrics) == {"loss"} and metrics["loss"] == loss
    return loss, gradient, np.float64(shown)


def places(views, key=KEY, config=SETTINGS, params=None):
    """Corner (row, column) and side in pixels of every crop, read off pictures of coordinates."""
    row, column = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    picture = np.stack([row, column, np.ones((SIZE, SIZE))], -1) / SIZE
    pictures = np.broadcast_to(picture, (len(views.index), SIZE, SIZE, 3))
    shown = SIZE * run(pictures, params, views, key, config)[2]
    middle = SEEN // 2
    first, second = shown[:, middle, middle, :2], shown[:, middle + 1, middle + 1, :2]
    side = SEEN * (second - first)
    np.testing.assert_allclose(side[:, 0], side[:, 1], rtol=1e-4)
    corner = first + 0.5 - (middle + 0.5) * side / SEEN
    return corner, side[:, 0]


def interpolation(corner, side):
    """[SEEN, SIZE]: bilinear samples, at the picture's border those of the border itself."""
    at = np.clip(corner + (np.arange(SEEN) + 0.5) * side / SEEN - 0.5, 0, SIZE - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(SIZE)))


def test_loss_and_gradient_against_numpy(params):
    rng = np.random.default_rng(1)
    rgb = rng.uniform(size=(4, SIZE, SIZE, 3))
    views = make_views([4, 7, 1, 0])
    corner, side = places(views, params=params)
    loss, gradient, _ = run(rgb, params, views)

    text, matrix = np.float64(params.embedded), np.float64(params.params["matrix"])
    expected, cosines = np.zeros_like(rgb), []
    for i in range(4):
        down, across = (interpolation(c, side[i]) for c in corner[i])
        crop = np.einsum("ih,jw,hwc->ijc", down, across, rgb[i])
        x = crop.ravel() @ matrix
        norm = np.linalg.norm(x)
        cosines.append(x @ text / norm)
        d_x = -(text / norm - (x @ text) * x / norm**3) / 4
        d_crop = (matrix @ d_x).reshape(crop.shape)
        expected[i] = np.einsum("ih,jw,ijc->hwc", down, across, d_crop)
    np.testing.assert_allclose(loss, -np.mean(cosines), atol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(np.mean(cosines)) > 1e-2  # no value that anything would have


def test_crops_are_drawn_inside_of_the_picture_and_in_range(params):
    config = DreamFields(crop=(0.5, 0.75))
    corner, side = places(make_views(range(400)), config=config, params=params)
    share = side / SIZE
    assert share.min() >= 0.5 - 1e-4 and share.max() <= 0.75 + 1e-4
    assert abs(share.mean() - 0.625) < 0.02 and share.std() > 0.06
    free = (SIZE - side)[:, None]
    where = corner / free
    assert where.min() >= -1e-3 and where.max() <= 1 + 1e-3
    np.testing.assert_allclose(where.mean(0), 0.5, atol=0.06)
    np.testing.assert_allclose(where.std(0), 12**-0.5, atol=0.03)
    assert abs(np.corrcoef(where.T)[0, 1]) < 0.15


def test_the_paper_always_crops_as_much(params):
    _, side = places(make_views([0, 1]), config=DreamFields(), params=params)
    np.testing.assert_allclose(side, SIZE * 154 / 168, rtol=1e-3)


def test_the_whole_picture_is_no_crop(params):
    rgb = np.random.default_rng(2).uniform(size=(1, SEEN, SEEN, 3))
    shown = run(rgb, params, make_views([0]), config=DreamFields((1.0, 1.0)))[2]
    np.testing.assert_allclose(shown, rgb, atol=1e-5)


def test_crops_of_one_colour_are_of_that_colour(params):
    rgb = np.broadcast_to(np.array([0.2, 0.9, 0.5]), (4, SIZE, SIZE, 3))
    shown = run(rgb, params, make_views(range(4)))[2]
    np.testing.assert_allclose(shown, np.broadcast_to(rgb[0, 0, 0], shown.shape), rtol=1e-6)


def test_a_view_draws_the_same_wherever_it_is_shown(params):
    rgb = np.random.default_rng(3).uniform(size=(4, SIZE, SIZE, 3))
    shown = run(rgb, params, make_views([5, 6, 7, 8]))[2]
    turned = run(rgb[[2, 0, 0, 1]], params, make_views([7, 5, 9, 6]))[2]
    np.testing.assert_array_equal(turned[[0, 1, 3]], shown[[2, 0, 1]])
    assert np.abs(turned[2] - shown[0]).max() > 0.1
    again = run(rgb, params, make_views([5, 6, 7, 8]), jax.random.key(4))[2]
    assert (np.abs(again - shown).max((1, 2, 3)) > 0.1).all()


def test_halves_average_to_the_whole(params):
    rgb = np.random.default_rng(4).uniform(size=(4, SIZE, SIZE, 3))
    loss, gradient, _ = run(rgb, params, make_views(range(4)))
    halves = [run(rgb[i], params, make_views(range(4)[i])) for i in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(loss, np.mean([half[0] for half in halves]), rtol=1e-5)
    joined = np.concatenate([half[1] for half in halves]) / 2
    np.testing.assert_allclose(gradient, joined, rtol=1e-4, atol=1e-8)


def test_the_prompt_decides_and_params_get_no_gradient(params):
    rgb = np.random.default_rng(5).uniform(size=(1, SIZE, SIZE, 3))
    views = make_views([0])

    def value(frozen):
        losses = SETTINGS.loss(Linear(), frozen, {}, jnp.float32(rgb), views, KEY, NOW, False)
        return losses.scene

    for gradient in jax.tree.leaves(jax.grad(value)(params)):
        np.testing.assert_array_equal(gradient, 0.0)
    other = DreamFields().load(Linear(params.params), Prompt("a"))
    assert abs(value(other) - value(params)) > 1e-2


WIDTHS = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


@settings
class TinyClip(Clip):
    """A CLIP without files."""

    @property
    def config(self):
        """Of tiny networks."""
        text = CLIPTextConfig(vocab_size=9, max_position_embeddings=4, **WIDTHS)
        vision = CLIPVisionConfig(image_size=SEEN, patch_size=4, **WIDTHS)
        return CLIPConfig(text, vision, projection_dim=6)

    @property
    def normalisation(self):
        """The usual one."""
        return MEAN, STD


@pytest.fixture(scope="module")
def clip():
    network = TinyClip()
    images, ids = jnp.zeros((1, SEEN, SEEN, 3)), jnp.zeros((1, 4), jnp.int32)
    return network, jax.jit(CLIP(network.config).init)(jax.random.key(1), images, ids)["params"]


def test_with_clip_the_gradient_is_the_difference_and_leads_uphill(clip):
    network, clip_params = clip
    target = jax.random.normal(jax.random.key(2), (6,))
    frozen = Frozen(clip_params, target / jnp.linalg.norm(target))
    views = make_views([0, 1])

    @jax.jit
    def value(rgb):
        return SETTINGS.loss(network, frozen, {}, rgb, views, KEY, NOW, False).scene

    gradient_of = jax.jit(jax.value_and_grad(value))
    rng = np.random.default_rng(6)
    rgb = jnp.float32(rng.uniform(size=(2, SIZE, SIZE, 3)))
    start, gradient = gradient_of(rgb)
    along = gradient / jnp.linalg.norm(gradient)
    for direction in (along, jnp.float32(rng.standard_normal(rgb.shape) * 0.1) + 0.3 * along):
        step = 0.05
        difference = (value(rgb + step * direction) - value(rgb - step * direction)) / (2 * step)
        slope = jnp.sum(gradient * direction)
        assert abs(slope) > 1e-2
        np.testing.assert_allclose(difference, slope, rtol=1e-2)
    for _ in range(40):
        now, gradient = gradient_of(rgb)
        rgb = rgb - gradient / jnp.linalg.norm(gradient)
    assert now < start - 0.3 and -1.0 <= now


@pytest.mark.parametrize(
    "crop, says",
    [
        ((0.0, 1.0), r"crop\[0\] is 0.0: expected above 0"),
        ((0.9, 0.8), r"crop is \(0.9, 0.8\): expected the first not above"),
        ((0.5, 1.1), r"crop\[1\] is 1.1: expected above 0 and at most 1"),
        ((0.5,), "crop is"),
    ],
)
def test_settings_that_cannot_be_meant(crop, says):
    with pytest.raises(UserError, match=says):
        DreamFields(crop=crop)
