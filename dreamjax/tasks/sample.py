"""`task = sample`: pictures from any model, by class or by text, as a grid and one by one."""

import dataclasses
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamjax.config import build, check_counts, check_workdir
from dreamjax.diffusion.samplers import Given
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, to_uint8, write_png
from dreamjax.priors import classifier
from dreamjax.tasks.images import read_image
from dreamjax.tasks.priors import PriorConfig, load_prior
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.training.metrics import Progress


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What to draw: `per_prompt` pictures for each of `prompts`, class names or sentences.

    Without prompts every class is drawn (or, where there are none, the model as it is). `weights`
    name the model (`tasks.priors`), `classifier` a file of `train_classifier`. `negative_prompt`
    takes the null prompt's place in guidance. `image` is a file to start from, noised to the
    fraction `start` of T (SDEdit), or, with a `mask` that is white where it is to be kept, to paint
    the rest of anew.
    """

    seed: int = 0
    weights: str = ""
    prior: PriorConfig = PriorConfig()
    classifier: str = ""
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    per_prompt: int = 8
    chunk: int = 64
    image: str = ""
    mask: str = ""
    start: float = 1.0
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self):
        check_counts(self, "per_prompt", "chunk")
        if self.mask and not self.image:
            raise UserError("mask says what to keep of an image: set image too")
        if self.start != 1.0 and (self.mask or not self.image):
            raise UserError(f"start is {self.start}: it goes with an image and no mask")


def read_given(prior, params: PyTree, c: SampleConfig) -> Given | None:
    """The image and the mask that the config names, in the prior's space."""
    if not c.image:
        return None
    key = jax.random.split(jax.random.key(c.seed))[1]
    read = lambda path, size, mode: read_image(Path(path).expanduser(), size, mode)  # noqa: E731
    rgb = read(c.image, prior.image_size, "L" if prior.shape[-1] == 1 else "RGB") / 255.0
    rgb = jnp.asarray(rgb, jnp.float32).reshape(1, *rgb.shape[:2], -1)
    mask = read(c.mask, prior.shape[0], "L")[..., None] / 255.0 if c.mask else None
    return Given(prior.encode(params, rgb, key)[0], mask)


def run(config, workdir: str) -> None:
    """Draw, and write `samples.png` and `images/PROMPT-NUMBER.png`."""
    settings = dict(config)
    settings.pop("task")
    c = build(SampleConfig, settings)
    prior, params = load_prior(c.weights, c.prior)
    guide = classifier.load(Path(c.classifier).expanduser()) if c.classifier else None
    given = read_given(prior, params, c)
    prompts = c.prompts or getattr(prior, "classes", ()) or ("",)
    prior.embed(params, list(prompts))  # an unknown word is told before anything is written
    workdir = check_workdir(workdir, config)

    repeated = [prompt for prompt in prompts for _ in range(c.per_prompt)]
    began = time.monotonic()
    with Progress(len(repeated), 0, show=()) as bar:
        bar.note(f"drawing {len(repeated)} pictures in {c.sampler.steps} steps each")
        rgb = sample(
            prior,
            params,
            repeated,
            jax.random.key(c.seed),
            c.sampler,
            negative=c.negative_prompt,
            classifier=guide,
            chunk=c.chunk,
            drawn=bar.update,
            given=given,
            start=c.start,
        )
    seconds = time.monotonic() - began
    levels = np.round(rgb * (prior.levels - 1)) / (prior.levels - 1)
    for number, (prompt, image) in enumerate(zip(repeated, levels, strict=True)):
        name = re.sub(r"\W+", "_", prompt).strip("_") or "sample"
        place = workdir / "images" / f"{name}-{number % c.per_prompt:03d}.png"
        place.parent.mkdir(exist_ok=True)
        write_png(place, np.broadcast_to(to_uint8(image), (*image.shape[:2], 3)))
    captions = repeated if any(repeated) else None
    write_png(workdir / "samples.png", grid(levels, c.per_prompt, captions))
    print(f"{len(repeated)} pictures in {seconds:.1f} s, compilation included", file=sys.stderr)
    print(f"wrote {workdir / 'samples.png'} and {workdir / 'images'}")
