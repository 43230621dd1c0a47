"""`task = evaluate`: the probe's scores of the prior's samples and of finished dreams.

Dreams of any prompts are scored by CLIP R-Precision instead, where CLIPs are named
(`tasks.retrieval`); the rest of this page is about the probe.

Every number stands beside its ceiling: what the probe scores on ground-truth renders of the same
objects from the same views. Samples are drawn for the fixed prompts (`evaluate.prompts`) with each
view word, and for random held-out captions. A dream is rendered from eight azimuths, in colour and
textureless: kind and colours are read from the first, the kind as geometry alone shows it from the
second, and the view that each side looks like is held against the one it is, where a second face
shows as a side or back that looks like a front.
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
from functools import partial
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dreamjax.config import build, check_workdir, to_plain, write_atomic
from dreamjax.distill.prompts import view_prompts
from dreamjax.distill.step import StepConfig, field_fn, ramp
from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import r_precision, truth
from dreamjax.evaluate.prompts import PROMPTS, Meaning, parse
from dreamjax.evaluate.scores import Count, confusion
from dreamjax.evaluate.tables import (
    DREAM_HEADS,
    HEADS,
    SPLITS,
    Score,
    details,
    sum_split,
    totals,
    view_table,
)
from dreamjax.export.sheet import grid, write_png
from dreamjax.priors import toybox as toybox_prior
from dreamjax.scene.background import Backdrop
from dreamjax.scene.camera import VIEW_WORDS, CameraConfig, orbit, view_index
from dreamjax.scene.render import render_image
from dreamjax.tasks import dream, retrieval
from dreamjax.tasks.many import attempt, prompts_of, slug
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.toybox.captions import BOTH, draw_caption, text_of
from dreamjax.toybox.draw import HELD_OUT, ToyboxConfig, combination_weights
from dreamjax.training.metrics import Progress

# Between the azimuths where the view's name changes: two fronts, four sides, two backs.
AZIMUTHS = tuple(22.5 + 45.0 * i for i in range(8))
BACKDROP = 0.5
FRONT = VIEW_WORDS.index("front")
# Kinds whose view the probe reads from ground truth this often have sides that can be told apart.
TELLABLE = 0.75


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
class DreamsConfig:
    """Which runs are scored, all those in the folder `dreams` ("" for none), and how.

    `run_missing` makes those of the fixed prompts that are not there. `elevation` is in degrees,
    `size` in pixels; `truths` objects a prompt are drawn for the ceiling. With `clips`, folders or
    repository ids, the scores are theirs: `prompts` is the file of captions, `clip_size` in pixels.
    """

    dreams: str = ""
    run_missing: bool = False
    elevation: float = 17.5
    size: int = 64
    truths: int = 4
    prompts: str = ""
    clips: tuple[str, ...] = ()
    clip_size: int = 128


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
        _run_missing(dreams, dream_settings)
    if c.eval.clips:
        e = c.eval
        rows, skipped = retrieval.score(dreams, e.prompts, e.clips, e.clip_size)
        found["r_precision"] = [row._asdict() for row in rows]
        pages.append(retrieval_page(rows, skipped))
    elif dreams:
        rows, looks, skipped = _score_dreams(c, dreams, probe, workdir)
        found["dreams"], found["views"] = rows, {k: v.tolist() for k, v in looks.items()}
        pages.append(dreams_page(c.eval, rows, looks, skipped))
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


def tellable(probe: probes.Shipped, kind: int) -> bool:
    """Whether the probe can tell the sides of this kind apart in ground truth."""
    right, of = probe.report["view_by_kind"][probes.CLASSES["kind"][kind]]
    return right >= TELLABLE * of


# Samples


def _score_samples(c: EvaluateConfig, prior, params, probe, workdir):
    """Totals of the trained, held-out and random prompts, and a score a prompt."""
    keys = jax.random.split(jax.random.key(c.seed), 4)
    views = np.tile(np.arange(len(VIEW_WORDS)), c.samples.per_view)
    prompts = PROMPTS if c.samples.per_view else ()
    texts = [view_prompts(prompt)[view] for prompt in prompts for view in views]
    parts = [_labels([parse(prompt)] * len(views), views) for prompt in prompts]
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
    said = [probes.read(pictures, probe).labels for pictures in (rgb, real)]

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


def _labels(meanings: list[Meaning], views) -> probes.Labels:
    return probes.Labels(*(np.array(column) for column in zip(*meanings, strict=True)), views)


def random_captions(key, count: int) -> tuple[list[str], probes.Labels]:
    """Captions that name both colours and a view, of held-out combinations as often as drawn."""
    weights = combination_weights(HELD_OUT)
    keys = jax.random.split(key, 3)
    cells = jax.random.categorical(keys[0], jnp.log(weights.ravel() + 1e-30), shape=(count,))
    kind, first, second = np.unravel_index(np.asarray(cells), weights.shape)
    view = np.asarray(jax.random.randint(keys[1], (count,), 0, len(VIEW_WORDS)))
    colors = jnp.stack([first, second], -1)

    def draw(key, kind, colors, view):
        return draw_caption(key, kind, colors, BOTH, view, view_words=1.0)

    given = (jax.random.split(keys[2], count), jnp.asarray(kind), colors, jnp.asarray(view))
    tokens = jax.jit(jax.vmap(draw))(*given)
    texts = [text_of(row) for row in np.asarray(tokens)]
    return texts, probes.Labels(kind, first, second, view)


# Dreams


def _run_missing(dreams: Path, settings: dict) -> None:
    """Make the dreams of the fixed prompts that have no run yet, and finish begun ones."""
    for number, prompt in enumerate(PROMPTS):
        place = dreams / slug(prompt)
        done = {run for run, said in prompts_of(dreams).items() if said == prompt and _ended(run)}
        if done:
            continue
        print(f"dream {number + 1} of {len(PROMPTS)}: {prompt}", file=sys.stderr, flush=True)
        wrong = attempt(dream.run, {**settings, "prompt": prompt}, str(place))
        if wrong and not _ended(place):  # a field without a mesh is scored too
            raise UserError(wrong)


def _ended(run: Path) -> bool:
    try:
        dream.load_scene(run)
    except UserError:
        return False
    return True


def _score_dreams(c: EvaluateConfig, dreams: Path, probe, workdir):
    """A score a run, [truth, look] counts of views of dreams and ceiling, and what was left out."""
    rows, kept, skipped = [], [], []
    looks = {name: np.zeros((len(VIEW_WORDS),) * 2, np.int64) for name in ("dreams", "ceiling")}
    runs = prompts_of(dreams)
    with Progress(len(runs), show=()) as bar:
        bar.note(f"scoring {len(runs)} dreams")
        for number, (place, prompt) in enumerate(runs.items()):
            meaning = parse(prompt)
            if meaning is None:
                skipped.append(f"{place.name}: no caption of the toybox with a colour: {prompt}")
                continue
            try:
                scene = dream.load_scene(place)
            except UserError as error:
                skipped.append(str(error))
                continue
            pictures = dream_pictures(*scene, c.eval)
            counts, seen = score_views(*pictures, meaning, probe)
            real = truth_pictures(scene[1], meaning, c.eval, jax.random.key(c.seed))
            ceiling, real_seen = score_views(*real, meaning, probe)
            can_tell = tellable(probe, meaning.kind)
            if can_tell:
                looks["dreams"] += seen
                looks["ceiling"] += real_seen
            name = prompt if place.name == slug(prompt) else f"{prompt} ({place.name})"
            rows.append(Score(name, meaning.held_out, can_tell, counts, ceiling))
            count = len(AZIMUTHS)
            kept.append(np.concatenate([p[:count] for p in (*pictures, *real)]))
            bar.update(number + 1)
    if kept:
        sheet = grid(np.concatenate(kept), 2 * len(AZIMUTHS), tile=48)
        write_png(workdir / "dreams.png", sheet)
    return rows, looks, skipped


@partial(jax.jit, static_argnames=("config", "elevation", "textureless"))
def _takings(config: CameraConfig, elevation: float, textureless: bool) -> truth.Taking:
    """The eight views, lit from the camera, before grey."""
    distance, focal = (sum(ends) / 2 for ends in (config.distance, config.focal))

    def one(azimuth):
        camera = orbit(azimuth, elevation, distance, focal)
        shading = dream.headlight(camera.position)._replace(textureless=jnp.float32(textureless))
        return truth.Taking(camera, shading, Backdrop(*jnp.full((2, 3), BACKDROP)))

    return jax.vmap(one)(jnp.array(AZIMUTHS))


@partial(jax.jit, static_argnames=("scene", "size"))
def _draw(scene: StepConfig, params, variance, taking: truth.Taking, size: int):
    field = field_fn(params, scene)
    behind = jnp.full((1, 1, 3), BACKDROP)

    def one(t):
        return render_image(field, t.camera, size, variance, t.shading, behind, scene.render).rgb

    return probes.shrink(jax.lax.map(one, taking))


def dream_pictures(
    settings: dream.DreamConfig, scene: StepConfig, params, c: DreamsConfig
) -> tuple[Float[np.ndarray, "v s s 3"], Float[np.ndarray, "v s s 3"]]:
    """A finished dream from `AZIMUTHS`, in colour and textureless, at the probe's size."""
    variance = ramp(scene.encoding.variance, settings.steps, scene.encoding.ramp_steps)
    takings = (_takings(scene.camera, c.elevation, bare) for bare in (False, True))
    return tuple(np.asarray(_draw(scene, params, variance, t, c.size)) for t in takings)


def truth_pictures(
    scene, meaning: Meaning, c: DreamsConfig, key
) -> tuple[Float[np.ndarray, "v s s 3"], Float[np.ndarray, "v s s 3"]]:
    """Ground truth of the same prompt, `truths` objects, from these cameras and in this light."""
    count = c.truths * len(AZIMUTHS)
    # One key an object: its eight pictures show the same proportions and shades.
    keys = jnp.repeat(jax.random.split(key, c.truths), len(AZIMUTHS))
    colors = np.tile([meaning.first, meaning.second], (count, 1))
    subject = truth.Subject(np.full(count, meaning.kind), colors)
    repeated = lambda leaf: jnp.concatenate([leaf] * c.truths)  # noqa: E731
    return tuple(
        truth.pictures(
            keys, subject, jax.tree.map(repeated, _takings(scene.camera, c.elevation, bare))
        )
        for bare in (False, True)
    )


def score_views(colored, textureless, meaning: Meaning, probe):
    """Counts for pictures of rounds of `AZIMUTHS`, and [truth, look] counts of views.

    Beside the probe's heads: `geometry`, the kind read from the textureless pictures, and `faces`,
    how many of the sides and backs look like a front.
    """
    rounds = len(colored) // len(AZIMUTHS)
    views = np.tile(np.asarray(view_index(jnp.array(AZIMUTHS), jnp.zeros(8))), rounds)
    labels = _labels([meaning] * len(views), views)
    said = probes.read(colored, probe).labels
    counts = probes.score(said, labels)
    bare = probes.score(probes.read(textureless, probe).labels, labels)
    away = views != FRONT
    counts["geometry"] = bare["kind"]
    counts["faces"] = Count(int((said.view[away] == FRONT).sum()), int(away.sum()))
    return counts, confusion(said.view, views, len(VIEW_WORDS))


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


def dreams_page(
    c: DreamsConfig, rows: list[Score], looks: dict[str, np.ndarray], skipped: list[str]
) -> str:
    """The dreams' tables as Markdown; `skipped` are lines about runs that have no score."""
    intro = f"""
        {len(rows)} dreams from {len(AZIMUTHS)} azimuths at elevation {c.elevation:g} degrees. Kind
        and colours are read from the colour render, the kind once more from the textureless one.
        Second faces are sides and backs that look like a front: fewer is better. The ceiling is the
        same for ground-truth renders of {c.truths} objects of each prompt. The totals of views are
        over kinds whose sides differ."""
    scores = [sum_split(f"{name} prompts", rows, held) for name, held in SPLITS]
    page = [
        "### Dreams",
        _filled(intro),
        totals(scores, DREAM_HEADS, "dreams"),
        details(rows, DREAM_HEADS, "dream"),
        view_table(looks["dreams"], looks["ceiling"], "dreams"),
    ]
    return "\n\n".join([*page, *_not_scored(skipped)])


def retrieval_page(rows: list[r_precision.Row], skipped: list[str]) -> str:
    """R-Precision as Markdown; `skipped` are lines about runs that have no score."""
    page = ["### CLIP R-Precision", r_precision.table(rows)]
    return "\n\n".join([*page, *_not_scored(skipped)])


def _not_scored(lines: list[str]) -> list[str]:
    return ["Not scored:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100)
