"""What the tests of exporters share: an analytic object, and readers of pages and videos."""

import functools
import subprocess
from html.parser import HTMLParser

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.export.object3d import Object3D, Record
from dreamjax.export.surface import Surface
from dreamjax.scene.camera import orbit
from dreamjax.scene.matter import Matter
from dreamjax.scene.render import Renderer, render_image
from dreamjax.scene.shading import headlight

CENTRES = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]], np.float32)
RADII = np.array([0.5, 0.25], np.float32)
COLOURS = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.9]], np.float32)
RENDERER = Renderer(samples=64, normal_samples=4)


def balls(mean, var, height=200.0):
    """Density falls over 0.02 units at each ball's surface; albedo is the nearer ball's."""
    del var
    distance = jnp.linalg.norm(mean[..., None, :] - CENTRES, axis=-1) - RADII
    nearest = jnp.argmin(distance, axis=-1)
    density = height * jax.nn.sigmoid(-jnp.min(distance, axis=-1) / 0.005)
    return Matter(density, jnp.asarray(COLOURS)[nearest])


class Page(HTMLParser):
    """Collects tags with their attributes, and the text of each kind of element."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        name = self._open[-1] if self._open else ""
        self.text[name] = self.text.get(name, "") + data

    def find(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def _decode(path, height, width):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def _make_object(matter_fn=balls, surface=Surface(resolution=48), record=Record()):  # noqa: B008
    """The object of an analytic matter function, drawn by the real renderer."""

    @jax.jit
    def matter(points):
        return matter_fn(points, jnp.zeros_like(points))

    @functools.partial(jax.jit, static_argnums=2)
    def picture(azimuth, elevation, size):
        camera = orbit(azimuth, elevation, 3.2, 1.3)
        white = jnp.ones((1, 1, 3))
        light = headlight(camera.position)
        return render_image(matter_fn, camera, size, jnp.float32(1e-4), light, white, RENDERER)

    return Object3D(
        prompt="two balls",
        radius=RENDERER.radius,
        matter=lambda points: tuple(np.asarray(leaf) for leaf in matter(points)),
        picture=lambda *view: jax.device_get(picture(*view)),
        surface=surface,
        record=record,
    )


@pytest.fixture(scope="session")
def two_balls():
    """The matter function: a large red ball at the origin and a small blue one at the front."""
    return balls


@pytest.fixture(scope="session")
def colours():
    """Of the red and of the blue ball."""
    return COLOURS


@pytest.fixture(scope="session")
def make_object():
    """A function that makes an Object3D of a matter function, drawn by the real renderer."""
    return _make_object


@pytest.fixture(scope="session")
def parse():
    """A function from HTML to its tags and text."""
    return Page


@pytest.fixture(scope="session")
def decode():
    """A function from an mp4 file, height and width to its frames."""
    return _decode
