"""The smallest prior of the toybox's kind, which nobody trained, and the smallest meshes."""

import functools
from pathlib import Path

import jax
import numpy as np

from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox
from dreamjax.toybox.captions import VOCABULARY


@functools.cache
def _tiny(size: int):
    unet = UNetConfig(
        channels=8,
        channel_mults=(1, 2),
        down_blocks=(1,),
        up_blocks=(1,),
        middle_blocks=1,
        attention_levels=(1,) if size > 8 else (),
        head_dim=8,
        text_dim=16,
    )
    text = TextConfig(len(VOCABULARY), dim=16, layers=1, heads=2)
    net = toybox.ToyboxNet(unet, text, VOCABULARY, image_size=size)
    return net, jax.jit(net.init)(jax.random.key(3))


def write_tiny_prior(path: Path, size: int = 16, spread: float = 0.0) -> Path:
    """Write its weights and return the path.

    With a `spread` every parameter is moved, those that start at zero too: it hears its texts.
    """
    net, params = _tiny(size)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    moved = [x + spread * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    toybox.save(path, net, jax.tree.unflatten(tree, moved))
    return path


def write_two_squares(folder: Path, thin: float = 1.0) -> None:
    """Meshes "a brick" and "a leaf", squares of two colours, the second `thin` times as wide."""
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], np.float16) * 0.5
    np.savez(
        folder / "things.npz",
        vertices=np.concatenate([corners, corners * np.array([1, thin, 1], np.float16)]),
        faces=np.array([[0, 1, 2], [2, 3, 0]] * 2, np.uint16),
        colors=np.array([[180, 60, 40]] * 2 + [[40, 160, 60]] * 2, np.uint8),
        vertex_count=np.array([4, 4]),
        face_count=np.array([2, 2]),
    )
    (folder / "things.csv").write_text("phrase,creator,model\na brick,A,1\na leaf,A,2\n")
