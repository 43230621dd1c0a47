"""`task = sample`: pictures from any model, by class or by text, as a grid and one by one."""

import dataclasses
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np

from dreamjax.config import build, check_workdir
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, to_uint8, write_png
from dreamjax.priors import classes, classifier, toybox
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.training.metrics import Progress
from dreamjax.weights import format_of


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What to draw: `per_prompt` pictures for each of `prompts`, class names or sentences.

    Without prompts every class is drawn (or, where there are none, the model as it is). `weights`
    is a safetensors file of `train_diffusion` or `train_prior`, "" for the prior that ships;
    `classifier` one of `train_classifier`. `negative_prompt` takes the null prompt's place in
    guidance.
    """

    seed: int = 0
    weights: str = ""
    classifier: str = ""
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    per_prompt: int = 8
    chunk: int = 64
    sampler: SamplerConfig = SamplerConfig()


def load_prior(weights: str):
    """A pixel prior with its parameters, of whichever kind the file is; "" is the shipped one.

    Raises UserError for a file of neither.
    """
    if not weights:
        return toybox.load()
    path = Path(weights).expanduser()
    return (classes if format_of(path) == classes.FORMAT else toybox).load(path)


def run(config, workdir: str) -> None:
    """Draw, and write `samples.png` and `images/PROMPT-NUMBER.png`."""
    settings = dict(config)
    settings.pop("task")
    c = build(SampleConfig, settings)
    if c.per_prompt < 1 or c.chunk < 1:
        raise UserError("per_prompt and chunk must be at least 1")
    prior, params = load_prior(c.weights)
    guide = classifier.load(Path(c.classifier).expanduser()) if c.classifier else None
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
