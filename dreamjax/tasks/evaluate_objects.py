"""Task evaluate_objects: how often a judge finds the phrase that a prior of named things drew.

Top-1 and top-5 among all phrases of the judge, by look, beside what the judge scores on ground
truth: its own ceiling. Dreams are scored by the same judge as CLIP R-Precision scores them
(`evaluate`, with the judge's file among `retrieval.clips`).
"""

import json
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from jaxtyping import Float

from dreamjax.evaluate import judge as judges
from dreamjax.evaluate.judge import Judge
from dreamjax.export.sheet import grid, write_png
from dreamjax.priors.objects import LIT, LOOKS, TEXTURELESS, Objects
from dreamjax.priors.sampling import Sampler
from dreamjax.settings import Range, Seed, settings
from dreamjax.tasks.train_judge import table
from dreamjax.tasks.train_objects import check_ddim, sample_views
from dreamjax.workdir import claim, write_text

ELEVATIONS = (0.0, 50.0)  # degrees, drawn evenly


@settings
class EvaluateObjects:
    """Score the samples of a prior of named things; writes scores.md, scores.json and pictures."""

    seed: Seed = 0  # of cameras and samples
    prior: Objects = Objects()  # what draws
    judge: Judge = Judge()  # what reads; its phrases are drawn
    per_phrase: Annotated[int, Range(1, 1000)] = 4  # pictures of each phrase and look
    sampler: Sampler = Sampler(steps=30, guidance_scale=3.0)

    def __post_init__(self):
        check_ddim(self.sampler)

    def run(self, workdir: str | Path) -> None:
        """Draw and score; raises UserError for files that cannot be read and unknown words."""
        judge, net, params = self.judge.trained, self.prior.net, self.prior.load()
        net.ids(judge.phrases)
        workdir = claim(workdir, self)
        rng = np.random.default_rng(self.seed)
        truth = np.repeat(np.arange(len(judge.phrases)), self.per_phrase)
        report, of_phrase = {}, {}
        for look in (LIT, TEXTURELESS):
            rgb = self._pictures(net, params, [judge.phrases[i] for i in truth], look, rng)
            scores = judges.read(judge, rgb)
            report[LOOKS[look]] = judges.counts(scores, truth)
            right = (scores.argmax(1) == truth).reshape(-1, self.per_phrase).sum(1)
            of_phrase[LOOKS[look]] = dict(zip(judge.phrases, right.tolist(), strict=True))
            first = rgb[:: self.per_phrase]
            write_png(workdir / f"{LOOKS[look]}.png", grid(first, 10, judge.phrases))
        text = table({"ground truth": judge.report, "samples": report}) + "\n"
        found = {"samples": report, "ground_truth": judge.report, "right": of_phrase}
        write_text(workdir / "scores.json", json.dumps(found, indent=1) + "\n")
        write_text(workdir / "scores.md", text)
        print(text)

    def _pictures(self, net, params, captions, look: int, rng) -> Float[np.ndarray, "n h w 3"]:
        cameras = np.stack(
            [rng.uniform(0, 360, len(captions)), rng.uniform(*ELEVATIONS, len(captions))], axis=1
        )
        key = jax.random.fold_in(jax.random.key(self.seed), look)
        looks = np.full(len(captions), look)
        return sample_views(net, params, captions, cameras, looks, key, self.sampler)
