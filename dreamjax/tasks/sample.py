"""Task sample: pictures from any prior, by text or by class, as a grid and one by one."""

import re
import sys
import time
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from dreamjax.data.images import read_image
from dreamjax.diffusion.samplers import Given
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, to_uint8, write_png
from dreamjax.priors.base import SampledPrior
from dreamjax.priors.classifier import NoisyClassifier
from dreamjax.priors.sampling import Sampler, check_classifier, check_sampler, sample
from dreamjax.priors.toybox import Toybox
from dreamjax.settings import Home, Range, Seed, Share, settings
from dreamjax.training.metrics import Progress
from dreamjax.workdir import claim, resolved

Pictures = Annotated[int, Range(1, 10_000)]


@settings
class Sample:
    """Draws pictures for prompts, sentences or names of classes, from noise or from a picture."""

    seed: Seed = 0  # same seed, same pictures
    prior: Annotated[SampledPrior, Home("dreamjax.priors")] = Toybox()  # the model that is asked
    classifier: Annotated[NoisyClassifier | None, Home("dreamjax.priors")] = None  # guides too
    prompts: tuple[str, ...] = ()  # what to draw; empty: every class, or the model as it is
    negative_prompt: str = ""  # what guidance goes away from, in the null text's place
    per_prompt: Pictures = 8  # pictures for each prompt
    chunk: Annotated[int, Range(1, 1024)] = 64  # pictures drawn at a time: memory
    image: str = ""  # a file to start from, noised to the fraction `start` of T (SDEdit)
    mask: str = ""  # a file, white where the image is to be kept; the rest is painted anew
    start: Annotated[Share, Range(0.0, 1.0, above=True)] = 1.0  # where an image's noise begins
    sampler: Sampler = Sampler()

    def __post_init__(self):
        if self.mask and not self.image:
            raise UserError("mask says what to keep of an image: set image too")
        if self.start != 1.0 and (self.mask or not self.image):
            raise UserError(f"start is {self.start}: it goes with an image and no mask")

    def run(self, workdir: str | Path) -> None:
        """Draw, and write `samples.png` and `images/PROMPT-NUMBER.png`."""
        check_sampler(self.prior, self.sampler, self.start)
        check_classifier(self.prior, self.classifier, self.sampler)
        params = self.prior.load()
        guide = None
        if self.classifier is not None:
            guide = (self.classifier, self.classifier.load())
        given = self.given(params)
        prompts = self.prompts or getattr(self.prior, "classes", ()) or ("",)
        self.prior.embed_texts(params, prompts)  # an unknown word is told before the workdir is
        workdir = claim(workdir, self)
        repeated = [prompt for prompt in prompts for _ in range(self.per_prompt)]
        began = time.monotonic()
        with Progress(len(repeated), 0, show=()) as bar:
            bar.note(f"drawing {len(repeated)} pictures in {self.sampler.steps} steps each")
            rgb = sample(
                self.prior,
                params,
                repeated,
                jax.random.key(self.seed),
                self.sampler,
                negative=self.negative_prompt,
                classifier=guide,
                chunk=self.chunk,
                drawn=bar.update,
                given=given,
                start=self.start,
            )
        seconds = time.monotonic() - began
        self.write(workdir, repeated, rgb)
        print(f"{len(repeated)} pictures in {seconds:.1f} s, compilation included", file=sys.stderr)
        print(f"wrote {workdir / 'samples.png'} and {workdir / 'images'}")

    def given(self, params: PyTree) -> Given | None:
        """The image and the mask that are named, in the prior's space."""
        if not self.image:
            return None
        key = jax.random.split(jax.random.key(self.seed))[1]
        height, _, channels = self.prior.shape
        mode = "L" if channels == 1 else "RGB"
        rgb = read_image(resolved(self.image), self.prior.image_size, mode) / 255.0
        rgb = jnp.asarray(rgb, jnp.float32).reshape(1, *rgb.shape[:2], -1)
        z_0 = self.prior.encode(params, rgb, key[None])[0]
        if not self.mask:
            return Given(z_0)
        kept = read_image(resolved(self.mask), height, "L")[..., None] / 255.0
        return Given(z_0, jnp.asarray(kept))

    def write(self, workdir: Path, prompts: list[str], rgb: Float[np.ndarray, "n h w c"]) -> None:
        """Write every picture, in as many levels as the model's have, and a sheet of them all."""
        top = self.prior.levels - 1
        levels = np.round(rgb * top) / top
        for number, (prompt, image) in enumerate(zip(prompts, levels, strict=True)):
            name = re.sub(r"\W+", "_", prompt)[:80].strip("_") or "sample"
            place = workdir / "images" / f"{name}-{number % self.per_prompt:03d}.png"
            write_png(place, np.broadcast_to(to_uint8(image), (*image.shape[:2], 3)))
        captions = prompts if any(prompts) else None
        write_png(workdir / "samples.png", grid(levels, self.per_prompt, captions))
