"""Pictures of the toybox as G-buffers beside those of meshes, with captions that say no view.

Light and backdrop are drawn anew each time, as for meshes, and the camera is told by number. Each
picture has two captions: one with its colours, and one for when it is shown without texture.
"""

import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8
from tqdm import tqdm

from dreamjax.data.meshes import mapped
from dreamjax.data.pictures import CHANNELS, GBuffer, pack
from dreamjax.errors import UserError
from dreamjax.scene.camera import Camera
from dreamjax.scene.shading import Light
from dreamjax.toybox.captions import MAX_WORDS, draw_caption, text_of
from dreamjax.toybox.draw import TRAIN, USUAL_SECOND, Draws, draw_example, draw_form

FORMAT = 1
CHUNK = 64
SEED = 11  # none of `toybox.pictures.SEEDS`
CAMERA_NUMBERS = 15


class ToyboxSet(NamedTuple):
    """K pictures, `stored` mapped from disk, with cameras [K] in NumPy and two captions each."""

    stored: UInt8[np.ndarray, "k s s 11"]
    cameras: Camera
    captions: tuple[str, ...]
    textureless_captions: tuple[str, ...]


def _one(key: Key[Array, ""], size: int):
    key_example, key_form, key_clay, key_caption = jax.random.split(key, 4)
    draws = Draws(light=Light(shaded=0.0))
    example = draw_example(key_example, size, TRAIN, draws)
    usual = example.colors[1] == jnp.asarray(USUAL_SECOND)[example.kind, example.colors[0]]
    colored = draw_form(key_form, usual, jnp.array(False), draws.plain)
    bare = draw_form(key_clay, usual, jnp.array(True), draws.plain)
    tokens = [
        draw_caption(key_caption, example.kind, example.colors, form, example.view, 0.0)
        for form in (colored, bare)
    ]
    return example.picture, example.camera, jnp.stack(tokens)


@functools.cache
def _drawer(size: int):
    """Pictures start..start + CHUNK - 1, compiled."""

    def draw(start):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(SEED), start + jnp.arange(CHUNK)
        )
        return jax.lax.map(lambda key: _one(key, size), keys)

    return jax.jit(draw).lower(jnp.int32(0)).compile()


def _as_numbers(camera: Camera) -> np.ndarray:
    """Cameras [K] as float32 [K, 15]."""
    parts = [np.asarray(v).reshape(len(camera.focal), -1) for v in camera]
    return np.concatenate(parts, axis=1)


def _as_cameras(numbers: np.ndarray) -> Camera:
    rotation = numbers[:, 3:12].reshape(-1, 3, 3)
    return Camera._make((numbers[:, :3], rotation, *(numbers[:, k] for k in range(12, 15))))


def draw_toybox(count: int, size: int, cache: str | Path) -> ToyboxSet:
    """`count` pictures, from `cache` where they are there; draws what is missing.

    Raises UserError for a disk that refuses.
    """
    chunks = -(-count // CHUNK)
    rows = chunks * CHUNK
    folder = Path(cache).expanduser() / f"toybox-{FORMAT}-{size}px-{rows}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = mapped(folder / "pictures.npy", (rows, size, size, CHANNELS), np.uint8)
        cameras = mapped(folder / "cameras.npy", (rows, CAMERA_NUMBERS), np.float32)
        tokens = mapped(folder / "tokens.npy", (rows, 2, MAX_WORDS), np.int32)
        done = mapped(folder / "done.npy", (chunks,), np.uint8)
    except OSError as error:
        raise UserError(f"cannot draw pictures in {folder}: {error}") from error

    def draw(chunk: int) -> None:
        picture, camera, words = jax.device_get(_drawer(size)(jnp.int32(chunk * CHUNK)))
        nothing = np.zeros_like(picture.mask)
        buffers = GBuffer(
            picture.albedo, picture.normal, picture.mask, picture.depth, nothing, nothing
        )
        at = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        stored[at], cameras[at], tokens[at] = pack(buffers), _as_numbers(camera), words

    missing = np.flatnonzero(done == 0)
    workers = os.cpu_count() or 1
    bar = tqdm(total=rows, initial=rows - len(missing) * CHUNK, desc="toybox", unit="picture")
    with bar, ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(missing), workers):
            part = missing[first : first + workers]
            for _ in pool.map(draw, part):
                bar.update(CHUNK)
            for array in (stored, cameras, tokens):
                array.flush()
            done[part] = 1
            done.flush()
    texts = _texts(folder / "captions.json", tokens)
    return ToyboxSet(
        stored[:count],
        _as_cameras(np.array(cameras[:count])),
        tuple(text for text, _ in texts[:count]),
        tuple(text for _, text in texts[:count]),
    )


def _texts(path: Path, tokens: np.ndarray) -> list[list[str]]:
    """The captions as text, kept beside the pictures since spelling them takes a while."""
    if not path.exists():
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps([[text_of(words) for words in both] for both in tokens]))
        beside.replace(path)
    return json.loads(path.read_text())
