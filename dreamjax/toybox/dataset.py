"""The toybox as a `tensorflow_datasets` data set (needs no TensorFlow).

On a CPU drawing a picture costs about as much as training on it, so pictures are drawn once and
trained on many times. The data set holds exactly the pictures that the renderer would draw from the
same keys: picture i of a split is `draw_example(fold_in(key(seed of the split), i))`.
"""

import functools
import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from dreamjax.toybox.captions import MAX_WORDS
from dreamjax.toybox.draw import ALL, HELD_OUT, TRAIN, ToyboxConfig, draw_example

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds

CHUNK = 128
_AS_USUAL = ToyboxConfig()
SPLITS = ("train", "validation", "held_out")
# The probe's two splits are never written to disk: it draws them when it is trained.
SEEDS = {"train": 0, "validation": 1, "held_out": 2, "probe": 3, "probe_fresh": 4}
COMBINATIONS = {
    "train": TRAIN,
    "validation": TRAIN,
    "held_out": HELD_OUT,
    "probe": ALL,
    "probe_fresh": ALL,
}


class Labelled(NamedTuple):
    """Pictures with captions and labels: uint8 `rgb` [N, S, S, 3], the rest as in `Example`."""

    rgb: np.ndarray
    tokens: np.ndarray
    kind: np.ndarray
    colors: np.ndarray
    view: np.ndarray
    look: np.ndarray


@functools.cache
def _chunk_drawer(size: int, config: ToyboxConfig):
    def draw(seed, start, combinations):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), start + jnp.arange(CHUNK)
        )

        def one(key):
            e = draw_example(key, size, combinations, config)
            rgb = jnp.round(e.picture.rgb * 255.0).astype(jnp.uint8)
            return Labelled(rgb, e.tokens, e.kind, e.colors, e.view, e.look)

        return jax.lax.map(one, keys)

    return jax.jit(draw).lower(*[jnp.int32(0)] * 3).compile()


def draw_chunks(
    split: str, count: int, size: int, config: ToyboxConfig = _AS_USUAL
) -> Iterator[Labelled]:
    """Pictures 0..count-1 of a split in order, in chunks, drawn on all cores."""
    draw = _chunk_drawer(size, config)
    workers = os.cpu_count() or 1

    def chunk(start: int) -> Labelled:
        numbers = (jnp.int32(v) for v in (SEEDS[split], start, COMBINATIONS[split]))
        return Labelled(*(v[: count - start] for v in jax.device_get(draw(*numbers))))

    starts = range(0, count, CHUNK)
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(starts), 4 * workers):
            yield from pool.map(chunk, starts[first : first + 4 * workers])


def _png(rgb: np.ndarray) -> io.BytesIO:
    encoded = io.BytesIO()
    Image.fromarray(rgb).save(encoded, "PNG", compress_level=1)
    encoded.seek(0)
    return encoded


class Toybox(tfds.core.GeneratorBasedBuilder):
    """Captioned pictures of toybox objects; see `dreamjax.toybox`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "14 kinds, 5 pairs, 10 colours."}

    def __init__(self, *, size: int = 32, counts: tuple[int, int, int], **kwargs):
        """Make a builder of `size`-pixel pictures, `counts` of train, validation and held_out."""
        self.size, self.counts = size, dict(zip(SPLITS, counts, strict=True))
        super().__init__(
            config=tfds.core.BuilderConfig(
                name=f"{size}px_" + "_".join(str(c) for c in counts), version="1.0.0"
            ),
            file_format="array_record",
            **kwargs,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        number = tfds.features.Scalar(np.int32)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.size, self.size, 3)),
                    "tokens": tfds.features.Tensor(shape=(MAX_WORDS,), dtype=np.int32),
                    "colors": tfds.features.Tensor(shape=(2,), dtype=np.int32),
                    "kind": number,
                    "view": number,
                    "look": number,
                }
            ),
            description="Procedural captioned 3D objects.",
        )

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        with tqdm(total=self.counts[split], desc=f"drawing {split}", unit="picture") as bar:
            number = 0
            for chunk in draw_chunks(split, self.counts[split], self.size):
                for row in range(len(chunk.rgb)):
                    yield (
                        number,
                        {
                            "image": _png(chunk.rgb[row]),
                            "tokens": chunk.tokens[row],
                            "colors": chunk.colors[row],
                            "kind": chunk.kind[row],
                            "view": chunk.view[row],
                            "look": chunk.look[row],
                        },
                    )
                    number += 1
                bar.update(len(chunk.rgb))


def load(data_dir: str, split: str, size: int, counts: tuple[int, int, int]) -> Labelled:
    """A split in memory, drawn and written to `data_dir` first if it is not there."""
    builder = Toybox(data_dir=data_dir, size=size, counts=counts)
    builder.download_and_prepare()
    source = builder.as_data_source(split=split)
    rows = [source[i] for i in range(len(source))]
    return Labelled(
        *(
            np.stack([row["image" if name == "rgb" else name] for row in rows])
            for name in Labelled._fields
        )
    )
