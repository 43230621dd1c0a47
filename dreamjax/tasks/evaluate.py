"""Task evaluate: scores of the shipped prior's samples and of finished dreams.

The probe reads kind, colours and view of the toybox's objects from pictures, and every number
stands beside its ceiling: what the probe scores on ground-truth renders of the same objects from
the same views (`evaluate.samples`, `evaluate.dreams`). Dreams of any prompts are scored by CLIP
R-Precision instead, where CLIPs are named (`evaluate.retrieval`), and beside models of the same
things, where meshes are (`evaluate.shapes`).
"""

import dataclasses
import functools
import json
import os
import platform
import re
import shlex
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from dreamjax.clock import Clock
from dreamjax.errors import UserError
from dreamjax.evaluate import dreams, retrieval, samples, shapes
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate.dreams import Dreams
from dreamjax.evaluate.judge import Judge
from dreamjax.evaluate.prompts import PROMPTS
from dreamjax.evaluate.retrieval import Retrieval
from dreamjax.evaluate.runs import FinishedRun
from dreamjax.evaluate.samples import DrawFn, Samples
from dreamjax.evaluate.shapes import Shapes
from dreamjax.export.mesh import read_mesh
from dreamjax.export.sheet import write_png
from dreamjax.many import attempt
from dreamjax.priors import toybox
from dreamjax.priors.clip import Clip
from dreamjax.priors.sampling import Sampler, check_sampler, sample
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.render import Rendering, render_image
from dreamjax.scene.scene import Scene, matter_at
from dreamjax.settings import Seed, settings
from dreamjax.tasks.dream import Dream, load
from dreamjax.workdir import CONFIG_FILE, claim, resolved, slug, stored_task, write_text

MESH = "mesh.glb"


@settings
class Evaluate:
    """Scores a prior's samples and finished dreams; writes scores.md and scores.json."""

    seed: Seed = 0  # of the samples and of ground truth
    prior: Toybox = Toybox()  # what draws the samples
    probe: str = ""  # a safetensors file of task train_probe; empty: the one that ships
    samples: Samples = Samples()  # what the prior draws; per_view and random 0: nothing
    dreams: Dreams = Dreams()  # which finished runs are scored
    retrieval: Retrieval = Retrieval()  # with CLIPs in it, runs are scored by them instead
    shapes: Shapes = Shapes()  # with meshes in it, runs are compared with them too
    dream: Dream = Dream()  # how missing dreams are made, their prompts aside

    def __post_init__(self):
        if self.retrieval.clips and not self.dreams.folder:
            raise UserError("retrieval.clips score dreams: name their folder, dreams.folder")
        if self.shapes.meshes and not self.dreams.folder:
            raise UserError("shapes.meshes score dreams: name their folder, dreams.folder")

    def run(self, workdir: str | Path) -> None:
        """Score what is named, print the tables, and write them as `scores.md` and `scores.json`.

        What is missing of the 20 prompts' dreams is made first, with `dreams.run_missing`. Raises
        UserError, before `workdir` is touched, for files and folders that cannot be read.
        """
        probe = probes.load(self.probe)
        folder = self._folder()
        if not (folder or self.samples.any):
            raise UserError("there is nothing to score: name dreams.folder, or ask for samples")
        draw = self._drawer() if self.samples.any else None
        clips: dict[str, tuple[Clip | Judge, PyTree]] = {}
        captions: list[str] = []
        if self.retrieval.clips:
            captions = retrieval.read_captions(self.retrieval.captions)
            networks = {
                name: Judge(name) if name.endswith(".safetensors") else Clip(weights=name)
                for name in self.retrieval.clips
            }
            clips = {name: (network, network.load()) for name, network in networks.items()}
        models = shapes.read_models(self.shapes) if self.shapes.meshes else None
        workdir = claim(workdir, self, harmless=("dreams.run_missing",))

        found: dict = {"facts": self._facts(), "samples": [], "dreams": []}
        pages = ["\n".join(f"- {name}: `{value}`" for name, value in found["facts"].items())]
        if draw:
            drawn = samples.score(self.samples, self.seed, draw, probe)
            found["samples"] = [row._asdict() for row in (*drawn.totals, *drawn.rows)]
            pages.append(samples.page(self.samples, drawn))
            _write_sheet(workdir / "samples.png", drawn.sheet)
        if folder and self.dreams.run_missing:
            make_missing(folder, self.dream)
        if folder:
            runs, unreadable = dreams_in(folder)
        if folder and clips:
            by_clip = retrieval.score(self.retrieval, captions, runs, finished_run, clips)
            by_clip.skipped.extend(unreadable)
            found["r_precision"] = [row._asdict() for row in by_clip.rows]
            pages.append(retrieval.page(by_clip))
        elif folder:
            scores = dreams.score(self.dreams, self.seed, runs, finished_run, probe)
            scores.skipped.extend(unreadable)
            found["dreams"] = [row._asdict() for row in scores.rows]
            found["views"] = {name: counts.tolist() for name, counts in scores.views.items()}
            pages.append(dreams.page(self.dreams, scores))
            _write_sheet(workdir / "dreams.png", scores.sheet)
        if folder and models is not None:
            beside = shapes.score(self.shapes, models, runs, finished_run)
            beside.skipped.extend(unreadable)
            found["shapes"] = [row._asdict() for row in beside.rows]
            pages.append(shapes.page(beside))
        text = "\n\n".join(pages) + "\n"
        write_text(workdir / "scores.json", json.dumps(found, indent=1) + "\n")
        write_text(workdir / "scores.md", text)
        print(text)
        print(f"wrote {workdir / 'scores.md'}")

    def _folder(self) -> Path | None:
        """The folder of runs, None where none is named; raises UserError where it is not there."""
        if not self.dreams.folder:
            return None
        folder = resolved(self.dreams.folder)
        if not folder.is_dir() and not self.dreams.run_missing:
            raise UserError(f"dreams.folder is {folder}, which is no folder of runs")
        return folder

    def _drawer(self) -> DrawFn:
        """What draws pictures by the prior; raises UserError for weights that cannot be read."""
        wanted = self.samples
        sampler = Sampler(steps=wanted.steps, guidance_scale=wanted.guidance_scale)
        check_sampler(self.prior, sampler)
        params = self.prior.load()

        def draw(texts: list[str], key) -> np.ndarray:
            return sample(self.prior, params, texts, key, sampler)

        return draw

    def _facts(self) -> dict[str, str]:
        """What the scores were made with."""
        facts = {
            "command": "python -m dreamjax.main " + shlex.join(sys.argv[1:]),
            "machine": _machine(),
            "date": time.strftime("%Y-%m-%d"),
            "jax": jax.__version__,
            "probe crc32": _crc(self.probe or probes.shipped()),
        }
        if self.samples.any:
            facts["prior crc32"] = _crc(self.prior.weights or toybox.shipped())
        return facts


def _write_sheet(path: Path, sheet: np.ndarray | None) -> None:
    if sheet is not None:
        write_png(path, sheet)


def _crc(path: str | Path) -> str:
    return f"{zlib.crc32(resolved(path).read_bytes()):08x}"


def _machine() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


# Finished runs


def dreams_in(folder: Path) -> tuple[dict[Path, str], list[str]]:
    """The dreams in a folder's subfolders with their prompts, and lines about unreadable runs."""
    found, unreadable = {}, []
    for path in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        try:
            task = stored_task(path.parent)
        except UserError as error:
            unreadable.append(str(error))
            continue
        if isinstance(task, Dream):
            found[path.parent] = task.prompt
    return found, unreadable


def make_missing(folder: Path, dream: Dream) -> None:
    """Make the dreams of the 20 prompts that have no finished run in `folder`.

    Begun ones are gone on with. Raises UserError where a run cannot be made.
    """
    for number, prompt in enumerate(PROMPTS):
        runs, _ = dreams_in(folder)
        if any(asked == prompt and _is_finished(place) for place, asked in runs.items()):
            continue
        print(f"dream {number + 1} of {len(PROMPTS)}: {prompt}", file=sys.stderr, flush=True)
        place = folder / slug(prompt)
        wrong = attempt(dataclasses.replace(dream, prompt=prompt, prompts=""), place)
        if wrong and not _is_finished(place):  # a field without a mesh is scored too
            raise UserError(wrong)


def _is_finished(place: Path) -> bool:
    try:
        load(place)
    except UserError:
        return False
    return True


def finished_run(place: Path) -> FinishedRun:
    """The finished run in a folder; raises UserError where there is none."""
    run = load(place)
    task, state = run.task, run.state
    # Without the prompt, so that runs which differ in nothing else share one compiled program.
    scene = task.scene
    mesh = read_mesh(place / MESH) if (place / MESH).exists() else None

    def render(camera, shading, behind, size: int) -> Rendering:
        return _render(scene, state.scene.params, state.front, camera, shading, behind, size)

    return FinishedRun(task.prompt, task.cameras, render, mesh)


@functools.partial(jax.jit, static_argnames=("scene", "size"))
def _render(scene: Scene, params, front, camera, shading, behind, size: int) -> Rendering:
    """Pictures of a scene at the end of its run, by V cameras with V shadings."""
    clock = Clock(1, 1)  # ramps are by fractions, so any finished run's
    matter, variance = matter_at(scene, params, clock, front), scene.renderer.variance(clock)

    def one(view):
        camera, shading = view
        return render_image(matter, camera, size, variance, shading, behind, scene.renderer)

    return jax.lax.map(one, (camera, shading))
