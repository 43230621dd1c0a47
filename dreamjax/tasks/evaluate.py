"""`task = evaluate`: the probe's scores of the prior's samples and of finished dreams.

Dreams of any prompts are scored by CLIP R-Precision instead, where CLIPs are named
(`tasks.retrieval`); the rest of this page is about the probe.

Every number stands beside its ceiling: what the probe scores on ground-truth renders of the same
objects from the same views. Samples are drawn for the fixed prompts (`evaluate.prompts`) with each
view word, and for random held-out captions; `tasks.dream_scores` says how dreams are read.
"""

import dataclasses
import json
import os
import platform
import re
import sys
import textwrap
import time
import zlib
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import build, check_workdir, to_plain, write_atomic
from dreamjax.distill.prompts import view_prompts
from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import r_precision, truth
from dreamjax.evaluate.prompts import PROMPTS, parse
from dreamjax.evaluate.scores import Count
from dreamjax.evaluate.tables import HEADS, SPLITS, Score, details, sum_split, totals
from dreamjax.export.sheet import grid, write_png
from dreamjax.priors import toybox as toybox_prior
from dreamjax.priors.base import PAPER_VIEWS
from dreamjax.scene.camera import VIEW_WORDS, all_names
from dreamjax.tasks import dream_scores, retrieval
from dreamjax.tasks.dream_scores import DreamsConfig, labels_of, not_scored, tellable
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.toybox.captions import BOTH, VIEW_NAMES, draw_caption, text_of
from dreamjax.toybox.draw import HELD_OUT, ToyboxConfig, combination_weights


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """How the prior is sampled: pictures for each prompt and view, and random held-out captions.

    0 of both skips this part.
    """

    per_view: int = 4
    random: int = 256
    guidance_scale: float = 4.0
    steps: int = 30


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What to score; `weights` and `probe` are safetensors files, "" for the shipped ones."""

    seed: int = 0
    weights: str = ""
    probe: str = ""
    samples: SamplesConfig = SamplesConfig()
    eval: DreamsConfig = DreamsConfig()


def run(config, workdir: str) -> None:
    """Score what the config names; prints the tables and writes them as `scores.md` and `.json`."""
    settings = dict(config)
    settings.pop("task")
    dream_settings = to_plain(settings.pop("dream", {}))
    c = build(EvaluateConfig, settings)
    if not 0.0 < c.eval.elevation < 60.0:
        raise UserError(f"eval.elevation is {c.eval.elevation}: expected between 0 and 60 degrees")
    for name in ("truths", "silhouettes"):
        if getattr(c.eval, name) < 1:
            raise UserError(f"eval.{name} is {getattr(c.eval, name)}: expected at least 1")
    probe = probes.load(Path(c.probe).expanduser() if c.probe else None)
    prior = None
    if c.samples.per_view or c.samples.random:
        prior = toybox_prior.load(Path(c.weights).expanduser() if c.weights else None)
    dreams = Path(c.eval.dreams).expanduser() if c.eval.dreams else None
    if dreams and not dreams.is_dir() and not c.eval.run_missing:
        raise UserError(f"eval.dreams is {dreams}, which is no folder of runs")
    if c.eval.clips and not dreams:
        raise UserError("eval.clips score dreams: name their folder, eval.dreams")
    workdir = check_workdir(workdir, config, harmless=("eval.run_missing",))

    found = {"facts": _facts(c)}
    pages = [_facts_page(found["facts"])]
    if prior:
        scores, rows = _score_samples(c, *prior, probe, workdir)
        found["samples"] = [*scores, *rows]
        pages.append(samples_page(c.samples, scores, rows))
    if dreams and c.eval.run_missing:
        dream_scores.run_missing(dreams, dream_settings)
    if c.eval.clips:
        e = c.eval
        rows, skipped = retrieval.score(dreams, e.prompts, e.clips, e.clip_size)
        found["r_precision"] = [row._asdict() for row in rows]
        pages.append(retrieval_page(rows, skipped))
    elif dreams:
        sheet = workdir / "dreams.png"
        rows, looks, skipped = dream_scores.score(c.eval, c.seed, dreams, probe, sheet)
        found["dreams"], found["views"] = rows, {k: v.tolist() for k, v in looks.items()}
        pages.append(dream_scores.page(c.eval, rows, looks, skipped))
    plain = lambda value: value._asdict() if hasattr(value, "_asdict") else value  # noqa: E731
    for part in ("samples", "dreams"):
        found[part] = [plain(row) for row in found.get(part, [])]
    text = "\n\n".join(pages) + "\n"
    write_atomic(workdir / "scores.json", json.dumps(found, indent=1) + "\n")
    write_atomic(workdir / "scores.md", text)
    print(text)
    print(f"wrote {workdir / 'scores.md'}")


def _crc(path: str, package: str, name: str) -> str:
    file = Path(path).expanduser() if path else resources.files(package) / "weights" / name
    return f"{zlib.crc32(file.read_bytes()):08x}"


def _facts(c: EvaluateConfig) -> dict[str, str]:
    device = jax.devices()[0]
    machine = device.device_kind
    if device.platform == "cpu":
        model = re.search(r"model name\s*: (.*)", _cpuinfo())
        machine = model[1] if model else platform.processor() or platform.machine()
        machine = f"{machine}, {os.cpu_count()} cores"
    facts = {
        "command": "python -m dreamjax.main " + " ".join(sys.argv[1:]),
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "jax": jax.__version__,
        "probe crc32": _crc(c.probe, "dreamjax.evaluate", "probe.safetensors"),
    }
    if c.samples.per_view or c.samples.random:
        facts["prior crc32"] = _crc(c.weights, "dreamjax.priors", "toybox.safetensors")
    return facts


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _facts_page(facts: dict[str, str]) -> str:
    return "\n".join(f"- {name}: `{value}`" for name, value in facts.items())


# Samples


def _score_samples(c: EvaluateConfig, prior, params, probe, workdir):
    """Totals of the trained, held-out and random prompts, and a score a prompt."""
    keys = jax.random.split(jax.random.key(c.seed), 4)
    views = np.tile(np.arange(len(VIEW_WORDS)), c.samples.per_view)
    prompts = PROMPTS if c.samples.per_view else ()
    texts = [view_prompts(prompt, PAPER_VIEWS)[view] for prompt in prompts for view in views]
    parts = [labels_of([parse(prompt)] * len(views), views) for prompt in prompts]
    if c.samples.random:
        more, labels = random_captions(keys[0], c.samples.random)
        texts, parts = texts + more, [*parts, labels]
    labels = probes.Labels(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    print(f"drawing {len(texts)} samples of the prior", file=sys.stderr, flush=True)
    sampler = SamplerConfig(steps=c.samples.steps, guidance_scale=c.samples.guidance_scale)
    rgb = sample(prior, params, texts, keys[1], sampler)
    print("drawing as many ground-truth renders", file=sys.stderr, flush=True)
    real = truth.pictures(
        jax.random.split(keys[2], len(texts)),
        truth.Subject(labels.kind, np.stack([labels.first, labels.second], -1)),
        truth.takings_of_views(keys[3], labels.view, ToyboxConfig()),
    )
    said = [probes.read(pictures, probe).labels for pictures in (rgb, real.rgb)]

    def score(start: int, stop: int, tells=None) -> list[dict[str, Count]]:
        cut = lambda group: probes.Labels(*(leaf[start:stop] for leaf in group))  # noqa: E731
        return [probes.score(cut(labels_said), cut(labels), tells=tells) for labels_said in said]

    rows = []
    for number, prompt in enumerate(prompts):
        meaning = parse(prompt)
        counts = score(number * len(views), (number + 1) * len(views))
        rows.append(Score(prompt, meaning.held_out, tellable(probe, meaning.kind), *counts))
    scores = [sum_split(f"{name} prompts", rows, held) for name, held in SPLITS if rows]
    if c.samples.random:
        start = len(texts) - c.samples.random
        tells = np.array([tellable(probe, kind) for kind in labels.kind[start:]])
        counts = score(start, len(texts), tells)
        scores.append(Score("random held-out captions", True, True, *counts))
    if rows:
        first = [n * len(views) + view for n in range(len(rows)) for view in range(len(VIEW_WORDS))]
        captions = [texts[i] for i in first]
        write_png(workdir / "samples.png", grid(rgb[first], 2 * len(VIEW_WORDS), captions))
    return scores, rows


def names_of_views() -> list[list[int]]:
    """For each of `VIEW_WORDS` the numbers of the toybox's view names that mean no other view.

    "front and side view" lies across two and is in none; whatever is overhead is that alone.
    """
    found: list[list[int]] = [[] for _ in VIEW_WORDS]
    for number, name in enumerate(all_names(VIEW_NAMES)):
        said = [view for view, word in enumerate(VIEW_WORDS) if word in name.split()]
        if len(said) == 1 or VIEW_WORDS[said[-1]] == "overhead":
            found[said[-1]].append(number)
    return found


def random_captions(key, count: int) -> tuple[list[str], probes.Labels]:
    """Captions that name both colours and a view, of held-out combinations as often as drawn."""
    weights = combination_weights(HELD_OUT)
    keys = jax.random.split(key, 4)
    cells = jax.random.categorical(keys[0], jnp.log(weights.ravel() + 1e-30), shape=(count,))
    kind, first, second = np.unravel_index(np.asarray(cells), weights.shape)
    view = np.asarray(jax.random.randint(keys[1], (count,), 0, len(VIEW_WORDS)))
    colors = jnp.stack([first, second], -1)
    names, which = names_of_views(), np.asarray(jax.random.uniform(keys[3], (count,)))
    name = [names[v][int(u * len(names[v]))] for v, u in zip(view, which, strict=True)]

    def draw(key, kind, colors, name):
        return draw_caption(key, kind, colors, BOTH, name, view_words=1.0)

    given = (jax.random.split(keys[2], count), jnp.asarray(kind), colors, jnp.asarray(name))
    tokens = jax.jit(jax.vmap(draw))(*given)
    texts = [text_of(row) for row in np.asarray(tokens)]
    return texts, probes.Labels(kind, first, second, view)


# Pages


def samples_page(c: SamplesConfig, scores: list[Score], rows: list[Score]) -> str:
    """The samples' tables as Markdown."""
    intro = f"""
        Guidance {c.guidance_scale:g}, {c.steps} DDIM steps; {c.per_view} samples for each of the
        {len(PROMPTS)} prompts and {len(VIEW_WORDS)} view words, and one for each of {c.random}
        random captions. The ceiling is the probe's score on ground-truth renders of the same
        objects and views. The totals of views are over kinds whose sides differ."""
    page = ["### Samples of the prior", _filled(intro), totals(scores, HEADS, "samples")]
    if rows:
        page.append(details(rows, HEADS, "samples"))
    return "\n\n".join(page)


def retrieval_page(rows: list[r_precision.Row], skipped: list[str]) -> str:
    """R-Precision as Markdown; `skipped` are lines about runs that have no score."""
    page = ["### CLIP R-Precision", r_precision.table(rows)]
    return "\n\n".join([*page, *not_scored(skipped)])


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100)
