"""A sentence, or a picture, becomes a 3D object."""

import dataclasses
import functools
import itertools
import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dreamjax.clock import Clock
from dreamjax.config import dumps, part_names, to_plain
from dreamjax.data.reference import read_depth, read_object
from dreamjax.distill.dream_fields import ImageText
from dreamjax.distill.facing import Facing, Front, make_find_front
from dreamjax.distill.objective import Frozen, Objective
from dreamjax.distill.reference import Reference
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import DreamState, Phase, Trained, init_state, make_sds_step
from dreamjax.errors import UserError
from dreamjax.export.base import MANIFEST, Exporter, export_all
from dreamjax.export.glb import Glb
from dreamjax.export.mesh_sheet import MeshSheet
from dreamjax.export.object3d import Object3D, Record
from dreamjax.export.report import Report
from dreamjax.export.surface import Surface
from dreamjax.export.turntable import Turntable
from dreamjax.export.views import Views
from dreamjax.many import Job, run_prompts
from dreamjax.priors.base import Picture, Prior, Prompt
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.camera import middle_camera
from dreamjax.scene.matter import Matter
from dreamjax.scene.render import Rendering
from dreamjax.scene.scene import Scene, init_scene, look, matter_at
from dreamjax.scene.shading import headlight
from dreamjax.settings import Every, Home, Pixels, Range, convert, settings
from dreamjax.training import hosts, parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import Recorder, spent, train
from dreamjax.training.metrics import read_history
from dreamjax.training.optimizer import Adam, Optimizer, apply_gradients
from dreamjax.training.run import Run
from dreamjax.training.scenes import Beginning, train_scenes
from dreamjax.workdir import resolved, stored_task

BatchViews = Annotated[int, Range(1, 4096)]
PICTURE_SIZE = 512  # pixels a side, to which an image is brought


@settings
class Dream(Scene, Run):
    """A sentence or a picture becomes a 3D object, by what a prior thinks of its views."""

    HARMLESS: ClassVar = (
        *(*Run.HARMLESS, "exports", "surface", "views_every", "preview_size"),
        "scenes_per_device",
    )
    MANY_HOSTS: ClassVar = True  # several processes may run it together

    prompt: str = ""  # what to make
    negative_prompt: str = ""  # what guidance moves away from, in place of the empty prompt
    prompts: str = ""  # a file with one prompt a line, each a run of its own below the workdir
    scenes_per_device: Annotated[int, Range(1, 4096)] = 1  # prompts of the file at once on each
    image: str = ""  # a PNG with alpha of what to make, as it looks from its front
    reference: Reference = Reference()  # where the image was taken from, and what it weighs
    prior: Annotated[Prior | ImageText, Home("dreamjax.priors")] = Toybox()
    """the frozen network that is asked"""
    objective: Annotated[Objective, Home("dreamjax.distill")] = Sds()  # what the scene is to please
    batch_views: BatchViews = 4  # views a step, over all devices
    phases: tuple[Phase, ...] = (Phase(),)  # parts of the run by size and light, in their order
    facing: Facing | None = None  # when the prior is asked which side is the front; none: never
    optimizer: Annotated[Optimizer, Home("dreamjax.training.optimizer")] = Adam()  # of the scene
    objective_optimizer: Annotated[Optimizer, Home("dreamjax.training.optimizer")] = Adam()
    """of what the objective trains itself, where it does"""
    views_every: Every = 50  # steps between two versions of views.png; 0: at the end alone
    preview_size: Pixels = 48  # pixels of each of them
    surface: Surface = Surface()  # how the mesh is taken from the field
    exports: Annotated[tuple[Exporter, ...], Home("dreamjax.export")] = (
        Views(),
        Glb(),
        MeshSheet(),
        Turntable(),
        Report(),
    )
    """what a finished run leaves behind"""

    def __post_init__(self):
        ends = [phase.until for phase in self.phases]
        if not ends or ends[-1] != 1.0 or sorted(set(ends)) != ends:
            raise UserError(f"phases end at {ends}: expected rising fractions, the last 1.0")
        # An objective says by its annotation what kind of prior it asks.
        wanted = typing.get_type_hints(type(self.objective).load).get("prior", Any)
        convert(wanted, self.prior, "prior")
        if self.facing:
            convert(Prior, self.prior, "facing needs a prior that is told views: prior")
        self._check_groups()
        if self.prompt and self.prompts:
            raise UserError(f"prompt is {self.prompt!r}, prompts {self.prompts!r}: give one")
        if self.image and self.prompts:
            raise UserError(f"image is {self.image!r}, prompts {self.prompts!r}: give one")
        if self.image and self.facing:
            raise UserError("facing asks for the front, which image shows: expected facing=none")
        if self.reference.depth_image and not self.image:
            raise UserError("reference.depth_image is the depth of an image: set image too")

    def _check_groups(self) -> None:
        """Raise UserError for views that do not come in the groups that the prior sees at once."""
        together, group = getattr(self.prior, "views_together", 1), self.cameras.group
        name = type(self.prior).__name__
        if group % together:
            raise UserError(f"cameras.group is {group}: expected {together} with {name}")
        if self.batch_views % group:
            many = f"batch_views is {self.batch_views}"
            raise UserError(f"{many}: expected a multiple of cameras.group, {group}")
        if self.facing and together > 1:
            raise UserError(f"facing asks about single views: expected facing=none with {name}")

    def step_of(self, fraction: float) -> int:
        """The step at a fraction of the run, a multiple of `steps_per_dispatch`."""
        return self.steps_per_dispatch * round(fraction * self.steps / self.steps_per_dispatch)

    def phase_at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return next(phase for phase in self.phases if step < self.step_of(phase.until))

    @property
    def scene(self) -> Scene:
        """The scene alone, without prompt, prior and run."""
        return Scene(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Scene)})

    @property
    def turn(self) -> int:
        """The step before which the prior is asked for the front, 0 for never."""
        return self.step_of(self.facing.after) if self.facing else 0

    def picture(self) -> Picture | None:
        """What `image` shows, with the camera in front of the object; None where none is named.

        Raises UserError for a file that shows no object, and where the prior is told nothing.
        """
        if not self.image:
            return None
        if not self.prompt and not getattr(self.prior, "reads_images", False):
            raise UserError(
                f"{type(self.prior).__name__} reads words, not pictures: set prompt beside image, "
                "or take --config.prior=zero123 and its weights"
            )
        file, depth_file = resolved(self.image), self.reference.depth_image
        rgb, mask = read_object(file, PICTURE_SIZE)
        depth = read_depth(resolved(depth_file), file, mask) if depth_file else None
        camera = middle_camera(self.cameras, 0.0, self.reference.elevation)
        depth = None if depth is None else jnp.asarray(depth)
        return Picture(jnp.asarray(rgb), jnp.asarray(mask), camera, depth)

    def begin(self, state: DreamState) -> DreamState:
        """The state before the first step, of one that nobody has looked at yet."""
        return state

    def run(self, workdir: str | Path) -> None:
        """Distil the prompt, going on from the newest checkpoint in `workdir`, and export it.

        With `prompts` that happens for each of them, in folders of `workdir`. A finished run is
        exported again only where `exports` or `surface` have changed.
        """
        if self.prompts:
            return run_prompts(self, workdir, self.HARMLESS)
        folder = resolved(workdir)
        if hosts.by_first(lambda: self.is_complete(folder)):
            if hosts.is_first():
                print(f"finished: {self.steps} steps are done and exported in {folder}")
            return None
        devices = parallel.devices_for(self.batch_views // self.cameras.group)
        # A field may read a file to begin with: a mistake there is told before a folder is claimed.
        init_scene(jax.random.key(self.seed), self)
        picture = self.picture()
        prompt = Prompt(self.prompt, self.negative_prompt, picture)
        frozen = self.objective.load(self.prior, prompt)._replace(picture=picture)
        hosts.by_first(lambda: str(self.claim(folder)))
        state = _distil(self, frozen, folder, devices)

        def export() -> None:
            export_all(object3d(self, state, folder), self.exports, folder)

        hosts.by_first(export)
        return None

    def run_all(self, jobs: Iterator[Job]) -> None:
        """Distil the prompts of `jobs`, so many at once on each of this process's devices."""
        _distil_all(self, jobs)

    def is_complete(self, folder: Path) -> bool:
        """Whether a folder holds all that the run of this task leaves behind.

        `manifest.json` is written last, and says of which settings its files are.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            exports = [manifest["exports"][name] for name in part_names(self.exports)]
            failed = any("error" in export for export in exports)
            stored = dict(manifest["settings"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False
        mine = json.loads(dumps(self))
        free = set(self.HARMLESS) - {"exports", "surface"}
        same = all(stored.get(name) == mine[name] for name in mine if name not in free)
        return same and not failed


def _optimizers(task: Dream):
    """Those of the scene and of what the objective trains."""
    return task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)


def _start(task: Dream, frozen: Frozen, checkpoints: Checkpoints) -> DreamState:
    """The state of the newest checkpoint, or the first one."""
    key = jax.random.key(task.seed)
    trained = task.objective.init(key, task.prior, frozen)
    state = init_state(key, task, trained, *_optimizers(task))
    return checkpoints.restore_latest(state) or task.begin(state)


def make_program(task: Dream, phase: Phase, devices) -> Callable:
    """A dispatch of one scene, its views spread over devices, as `parallel.pmap` compiles it."""
    update = make_update(*_optimizers(task))
    step = make_sds_step(
        task,
        task.prior,
        task.objective,
        phase,
        task.steps,
        update,
        parallel.mean,
        task.reference,
    )
    return parallel.pmap(parallel.repeat(step, task.steps_per_dispatch), devices, shared=2)


def _distil(task: Dream, frozen: Frozen, workdir: Path, devices) -> DreamState:
    """Take the steps that are left; returns this process's copy of the last state."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, base_key = _start(task, frozen, checkpoints), jax.random.key(task.seed)
    if len(set(hosts.gather(int(state.step)))) > 1:
        raise UserError(
            f"the processes of this job do not see the same checkpoints: {workdir} must lie on a "
            "file system that all hosts share"
        )
    index = parallel.split_indices(task.batch_views, devices)
    state, frozen, base_key = parallel.replicate((state, frozen, base_key), devices)
    ask = make_find_front(task.facing or Facing(), task, cast(Prior, task.prior))
    preview = Views(task.preview_size)
    found: list[Front] = []

    @functools.cache
    def compiled(phase: Phase) -> Callable:
        return make_program(task, phase, devices)

    def take(step: int, state: DreamState):
        if step == task.turn > 0:
            here, mine, key = parallel.first_copy((frozen, state, base_key))
            clock = Clock(step, task.steps)
            front = ask(here, mine.scene.params, clock, jax.random.fold_in(key, task.steps))
            front = jax.tree.map(jnp.asarray, Front(*hosts.by_first(lambda: _plain(front))))
            found.append(front)
            state = state._replace(front=parallel.replicate(front.turns, devices))
        return compiled(task.phase_at(step))(state, index, frozen, base_key)

    def after(done: int, state: DreamState, bar, log) -> None:
        if hosts.is_first() and _previews(task, done):
            mine = parallel.first_copy(state)
            preview(object3d(task, mine, workdir, done), workdir)
        if done == task.turn > 0:
            bar.note("asking the prior which side is the front ...")
        if found and done == task.turn + task.steps_per_dispatch:
            bar.note(_front_in_words(found[0]))

    cuts = [task.step_of(phase.until) for phase in task.phases]
    state = train(
        take,
        state,
        workdir,
        checkpoints,
        task,
        show=("opacity", "grad_norm"),
        after=after,
        compiles_at=(*cuts, task.turn),
    )
    return parallel.first_copy(state)


def _plain(front: Front) -> tuple[int, float, float]:
    return int(front.turns), float(front.gain), float(front.error)


def _previews(task: Dream, done: int) -> bool:
    """Whether views.png is due after so many steps."""
    return task.views_every > 0 and done % task.views_every < task.steps_per_dispatch


class _PromptScene:
    """One prompt of many, as `train_scenes` takes it to its end."""

    def __init__(self, job: Job, params: PyTree):
        self._job, self._params = job, params
        self._task, self._folder = cast(Dream, job.task), job.folder

    def begin(self) -> Beginning:
        self._job.begin()
        task, prompt = self._task, Prompt(self._task.prompt, self._task.negative_prompt)
        init_scene(jax.random.key(task.seed), task)
        frozen = task.objective.load(task.prior, prompt, self._params)
        self._folder = task.claim(self._folder)
        checkpoints = Checkpoints(self._folder / "checkpoints", alone=True)
        state = _start(task, frozen, checkpoints)
        recorder = Recorder(self._folder, checkpoints, task, int(state.step))
        return Beginning(state, frozen.embedded, recorder)

    def after(self, done: int, state: Callable[[], DreamState]) -> None:
        if _previews(self._task, done):
            result = object3d(self._task, state(), self._folder, done)
            Views(self._task.preview_size)(result, self._folder)

    def finish(self, state: DreamState) -> None:
        export_all(object3d(self._task, state, self._folder), self._task.exports, self._folder)

    def ended(self, error: BaseException | None) -> None:
        self._job.end(error)


def _distil_all(task: Dream, jobs: Iterator[Job]) -> None:
    """Distil many prompts, each on one device of this process, which loads the weights once."""
    some = list(itertools.islice(jobs, parallel.local_count() * task.scenes_per_device))
    if not some:
        return
    devices = parallel.devices_for_scenes(len(some), task.scenes_per_device)
    params = task.prior.load()
    index = jnp.arange(task.batch_views, dtype=jnp.int32)
    shared = parallel.replicate((index, params, jax.random.key(task.seed)), devices)
    scenes = (_PromptScene(job, params) for job in itertools.chain(some, jobs))
    train_scenes(
        scenes,
        task,
        make_programs(task, devices),
        shared,
        devices,
        task.scenes_per_device,
        show=("opacity", "grad_norm"),
    )


def make_programs(task: Dream, devices) -> Callable[[int], list[Callable]]:
    """What a scene after so many steps is given next: the question for its front, a dispatch."""
    update = make_update(*_optimizers(task))
    find_front = make_find_front(task.facing or Facing(), task, cast(Prior, task.prior))

    def compiled(program: Callable) -> Callable:
        return parallel.pmap_scenes(program, devices, task.scenes_per_device, shared=3)

    @functools.cache
    def distil(phase: Phase) -> Callable:
        step = make_sds_step(
            task, task.prior, task.objective, phase, task.steps, update, parallel.alone
        )
        several = parallel.repeat(step, task.steps_per_dispatch)

        def program(state: DreamState, embedded, index, params, key):
            return several(state, index, Frozen(params, embedded), key)

        return compiled(program)

    @compiled
    def ask(state: DreamState, embedded, index, params, key):
        clock, key = Clock(task.turn, task.steps), jax.random.fold_in(key, task.steps)
        front = find_front(Frozen(params, embedded), state.scene.params, clock, key)
        return state._replace(front=front.turns), {}

    def programs(done: int) -> list[Callable]:
        before = [ask] if done == task.turn > 0 else []
        return [*before, distil(task.phase_at(done))]

    return programs


def make_update(scene_tx, objective_tx) -> Callable:
    """(grads, loss, scene, objective) -> (scene, objective, metrics): one step of both."""

    def update(grads, loss: Float[Array, ""], scene: Trained, objective: Trained):
        params, opt_state, counts = apply_gradients(scene_tx, grads[0], loss, *scene)
        scene = Trained(params, opt_state)
        if jax.tree.leaves(objective.params):
            params, opt_state, own = apply_gradients(objective_tx, grads[1], loss, *objective)
            objective = Trained(params, opt_state)
            counts = {**counts, "objective_grad_norm": own["grad_norm"]}
        return scene, objective, counts

    return update


def _front_in_words(found: Front) -> str:
    if not found.turns:
        return "the front is at azimuth 0, where it should be"
    return (
        f"the front is at azimuth {90 * int(found.turns)}, by {found.gain / found.error:.1f} "
        "standard errors; views are named from there"
    )


@functools.partial(jax.jit, static_argnames=("scene", "size"))
def _picture(scene: Scene, params, front, clock, azimuth, elevation, size: int) -> Rendering:
    light = headlight(middle_camera(scene.cameras, azimuth, elevation).position)
    white = jnp.ones((1, 1, 3))
    return look(scene, params, clock, azimuth, elevation, size, light, white, front)


@functools.partial(jax.jit, static_argnames="scene")
def _matter(scene: Scene, params, front, clock, points: Float[Array, "n 3"]) -> Matter:
    variance = scene.renderer.variance(clock)
    return matter_at(scene, params, clock, front)(points, jnp.full((1, 3), variance))


def picture(
    task: Dream, state: DreamState, step: int, azimuth: float, elevation: float, size: int
) -> Rendering:
    """A picture before white, lit from the camera, as NumPy arrays; angles in degrees."""
    angles, clock = (jnp.float32(azimuth), jnp.float32(elevation)), Clock(step, task.steps)
    # Of the scene alone, so that another prompt needs no other program.
    seen = _picture(task.scene, state.scene.params, state.front, clock, *angles, size)
    return jax.device_get(seen)


def object3d(task: Dream, state: DreamState, folder: Path, step: int | None = None) -> Object3D:
    """The object that the run in `folder` has at a step, by default at its end."""
    clock = Clock(task.steps if step is None else step, task.steps)

    def matter(points):
        points = jnp.asarray(points, jnp.float32)
        found = _matter(task.scene, state.scene.params, state.front, clock, points)
        return np.asarray(found.density), np.asarray(found.albedo)

    facts = {"front found at": f"{90 * int(state.front)} degrees"} if task.facing else {}
    return Object3D(
        prompt=task.prompt or Path(task.image).stem,
        radius=task.renderer.radius,
        matter=matter,
        picture=functools.partial(picture, task, state, int(clock.step)),
        surface=task.surface,
        record=Record(
            history=read_history(folder),
            settings=to_plain(task),
            seconds=spent(folder),
            facts=facts,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run: what it was asked, its last state, and the object."""

    task: Dream
    state: DreamState
    object3d: Object3D


def load(run_dir: str | Path) -> Finished:
    """The finished run in a folder; raises UserError where there is none."""
    folder = resolved(run_dir)
    task = stored_task(folder)
    if not isinstance(task, Dream):
        raise UserError(f"{folder} is not the run of a dream but of {type(task).__name__}")
    state = _restored(folder, task)
    done = int(state.step) if state else 0
    if state is None or done < task.steps:
        raise UserError(f"the run in {folder} is not finished: step {done} of {task.steps}")
    return Finished(task, state, object3d(task, state, folder))


def _restored(folder: Path, task: Dream) -> DreamState | None:
    """The newest state in a run's folder, without what its objective trained."""
    if not (folder / "checkpoints").is_dir():
        return None

    def template(key):
        tx = task.optimizer.make(task.steps)
        state = init_state(key, task, {}, tx, tx)
        return {name: getattr(state, name) for name in ("step", "scene", "front")}

    shapes = jax.eval_shape(template, jax.random.key(task.seed))
    found = Checkpoints(folder / "checkpoints").restore_latest(shapes, others=("objective.",))
    return DreamState(**found, objective=Trained({}, ())) if found else None
