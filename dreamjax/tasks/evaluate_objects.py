"""Task evaluate_objects: how often a judge finds the phrase that a prior of named things drew.

Top-1 and top-5 among all phrases of the judge, by look, beside what the judge scores on ground
truth: its own ceiling. Things in colours that they do not have are drawn too, and their colour is
read (`evaluate.recolored`). Dreams are scored by the same judge as CLIP R-Precision scores them
(`evaluate`, with the judge's file among `retrieval.clips`).
"""

import functools
import json
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dreamjax.evaluate import judge as judges
from dreamjax.evaluate import recolored
from dreamjax.evaluate.judge import Judge
from dreamjax.export.sheet import grid, write_png
from dreamjax.priors.objects import ALBEDO, LIT, LOOKS, TEXTURELESS, Objects, tell
from dreamjax.priors.sampling import Sampler
from dreamjax.scene.camera import Cameras, middle_camera
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
    recolored: Annotated[int, Range(0, 10_000)] = 20  # pairs of a thing and a colour
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
            captions = [judge.phrases[i] for i in truth]
            rgb = self._pictures(net, params, captions, self._cameras(rng, len(truth)), look)
            scores = judges.read(judge, rgb)
            report[LOOKS[look]] = judges.counts(scores, truth)
            right = (scores.argmax(1) == truth).reshape(-1, self.per_phrase).sum(1)
            of_phrase[LOOKS[look]] = dict(zip(judge.phrases, right.tolist(), strict=True))
            first = rgb[:: self.per_phrase]
            write_png(workdir / f"{LOOKS[look]}.png", grid(first, 10, judge.phrases))
        found = {"samples": report, "ground_truth": judge.report, "right": of_phrase}
        text = table({"ground truth": judge.report, "samples": report}) + "\n"
        pairs = recolored.pairs(judge.phrases, self.recolored)
        if pairs:
            found["colors"] = self._colors(net, params, pairs, rng, workdir)
            text += "\n" + color_table(found["colors"]) + "\n"
        write_text(workdir / "scores.json", json.dumps(found, indent=1) + "\n")
        write_text(workdir / "scores.md", text)
        print(text)

    def _cameras(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "n 2"]:
        angles = rng.uniform(0, 360, count), rng.uniform(*ELEVATIONS, count)
        return np.stack(angles, axis=1)

    def _pictures(self, net, params, captions, cameras, look: int) -> Float[np.ndarray, "n h w 3"]:
        key = jax.random.fold_in(jax.random.key(self.seed), look)
        looks = np.full(len(captions), look)
        return sample_views(net, params, captions, cameras, looks, key, self.sampler)

    def _colors(self, net, params, pairs, rng, workdir: Path) -> dict[str, list[int]]:
        """[right, of] colours of samples in albedo, of pairs that are trained on and held out.

        The object is where the mean picture says so.
        """
        shown = [pair for pair in pairs for _ in range(self.per_phrase)]
        captions, cameras = [pair.caption for pair in shown], self._cameras(rng, len(shown))
        rgb = self._pictures(net, params, captions, cameras, ALBEDO)
        camera = jax.vmap(functools.partial(middle_camera, Cameras()))(*cameras.T)
        look = jnp.full(len(shown), ALBEDO)
        view = tell(camera, look, look == ALBEDO)
        mean = net.mean_picture(params, net.condition(params, net.ids(captions), view))
        mask = np.asarray(jax.image.resize(mean[..., 3], rgb.shape[:3], "bilinear"))
        right = recolored.read_color(rgb, mask) == np.array([pair.color for pair in shown])
        held_out = np.array([pair.held_out for pair in shown])
        first = slice(None, None, self.per_phrase)
        write_png(workdir / "recolored.png", grid(rgb[first], 10, captions[first]))
        split = {"trained": ~held_out, "held out": held_out}
        return {name: [int(right[one].sum()), int(one.sum())] for name, one in split.items()}


def color_table(counts: dict[str, list[int]]) -> str:
    """Counts of right colours as Markdown."""
    lines = ["| things in another colour | have it |", "|---|---|"]
    for name, (right, of) in counts.items():
        lines += [f"| pairs {name} | {100 * right / of:.1f} % of {of} |"] if of else []
    return "\n".join(lines)
