"""`task = dream`: a sentence becomes a 3D object."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamjax.config import CONFIG_FILE, build, check_workdir, to_plain
from dreamjax.distill.dream_fields import (
    DreamFieldsConfig,
    dream_fields_params,
    make_dream_fields,
)
from dreamjax.distill.facing import Facing, make_find_front
from dreamjax.distill.sds import Objective, SdsConfig, make_sds, sds_params
from dreamjax.distill.step import (
    ContrastConfig,
    EncodingConfig,
    LossConfig,
    SceneState,
    StepConfig,
    encoding_variance,
    field_fn,
    init_scene,
    make_sds_step,
)
from dreamjax.errors import UserError
from dreamjax.export.mesh import MeshConfig, extract_mesh, write_mesh
from dreamjax.export.raster import render_mesh
from dreamjax.export.report import Report, write_report
from dreamjax.export.sheet import SHEET_VIEWS, contact_sheet, grid, to_uint8, write_png
from dreamjax.export.video import write_video
from dreamjax.priors import clip as clips
from dreamjax.priors.stable_diffusion import StableDiffusion, fit_rgb_to_latent
from dreamjax.scene.camera import CameraConfig, middle_camera
from dreamjax.scene.field import FieldConfig
from dreamjax.scene.render import RenderConfig, render_image
from dreamjax.scene.shading import LightConfig, Shading, ShadingConfig
from dreamjax.tasks.many import run_prompts
from dreamjax.tasks.priors import PriorConfig, load_prior
from dreamjax.toybox.captions import colorless
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import spent, train
from dreamjax.training.metrics import Progress, read_history
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer

# What may change between the starts of a run.
HARMLESS = ("export", "log_every", "checkpoint_every")
ANGLES = tuple(view[1:] for view in SHEET_VIEWS)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What a finished run leaves behind; sizes in pixels, `views_every` in steps."""

    views_size: int = 96
    preview_size: int = 48
    views_every: int = 50
    video_frames: int = 60
    video_size: int = 128
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """Everything about a run, or about those of all the lines of the file `prompts`.

    `weights` name the prior (`tasks.priors`), or CLIP where `dream_fields` is given, which is then
    the objective. `render_size` is (first share of the run, pixels) pairs: ((0.0, 32), (0.7, 64))
    renders 32 pixels and from 70 % of the steps on 64. `albedo_steps` come first and show albedo
    alone. A latent prior is shown latents by colour, not through its encoder, for `latent_share`
    of the run. Textureless views are told the prompt without its colours and with
    `textureless_words` behind; where there are none, the prompt as it is. After the share
    `front_after` of the run the prior is asked which side of the object is its front, and views are
    named by that from then on (`distill.facing`; 0: never).
    """

    prompt: str
    prompts: str = ""
    negative_prompt: str = ""
    textureless_words: str = ""
    seed: int = 0
    steps: int = 400
    batch_views: int = 4
    steps_per_dispatch: int = 1
    weights: str = ""
    prior: PriorConfig = PriorConfig()
    dream_fields: DreamFieldsConfig | None = None
    guidance_scale: float = 4.0
    draws: int = 1
    t_range: tuple[float, float] = (0.02, 0.98)
    t_range_end: tuple[float, float] | None = None
    weighting: str = "sigma_squared"
    interpolate_views: bool = False
    perp_neg: float = 0.0
    clip_residual: float = 0.0
    latent_share: float = 0.0
    render_size: tuple[tuple[float, int], ...] = ((0.0, 32),)
    albedo_steps: int = 100
    front_after: float = 0.0
    mlp_background: bool = False
    textured_backdrops: bool = False
    field: FieldConfig = FieldConfig()
    encoding: EncodingConfig = EncodingConfig()
    contrast: ContrastConfig | None = None
    render: RenderConfig = RenderConfig()
    camera: CameraConfig = CameraConfig()
    light: LightConfig = LightConfig()
    shading: ShadingConfig = ShadingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    export: ExportConfig = ExportConfig()
    checkpoint_every: int = 100
    log_every: int = 10

    @property
    def backdrops(self) -> int:
        """How many a rendering is shown before: each of Dream Fields' crops has its own."""
        return self.dream_fields.crops if self.dream_fields else 1


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps [start, stop) that run as one compiled program."""

    start: int
    stop: int
    size: int
    shaded: bool
    latent: bool


def phases(c: DreamConfig) -> list[Phase]:
    """The run cut where the render size, the use of light or the way to latents changes.

    Raises UserError for a render_size that does not begin at 0 and rise, for a latent_share or
    front_after that is no share, and for steps at which something changes that are no multiples of
    steps_per_dispatch.
    """
    shares = [share for share, _ in c.render_size]
    if not shares or shares[0] != 0.0 or sorted(set(shares)) != shares or shares[-1] >= 1.0:
        raise UserError(
            f"render_size is {c.render_size}: expected (share, pixels) pairs, shares rising from 0 "
            "and below 1"
        )
    if not 0.0 <= c.latent_share <= 1.0:
        raise UserError(f"latent_share is {c.latent_share}: expected 0 to 1")
    if not 0.0 <= c.front_after < 1.0:
        raise UserError(f"front_after is {c.front_after}: expected 0 or more and below 1")
    sizes = {round(share * c.steps): size for share, size in c.render_size}
    latent, turn = round(c.latent_share * c.steps), round(c.front_after * c.steps)
    cuts = sorted({*sizes, min(c.albedo_steps, c.steps), latent, c.steps})
    if any(cut % c.steps_per_dispatch for cut in (*cuts, turn)):
        raise UserError(
            f"steps, albedo_steps, latent_share and the cuts of render_size fall at {cuts}, "
            f"front_after at {turn}: "
            f"expected multiples of steps_per_dispatch, {c.steps_per_dispatch}"
        )
    found = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        size = sizes[max(cut for cut in sizes if cut <= start)]
        found.append(Phase(start, stop, size, start >= c.albedo_steps, start < latent))
    return found


def step_config(c: DreamConfig) -> StepConfig:
    """The part of the config that the step is closed over."""
    names = [f.name for f in dataclasses.fields(StepConfig)]
    return StepConfig(**{name: getattr(c, name) for name in names})


def run(config, workdir: str) -> None:
    """Distil `config.prompt`, going on from the newest checkpoint in `workdir`, and export it.

    With `config.prompts` that happens for each of them, in folders of `workdir` (`tasks.many`).
    """
    settings = dict(config)
    settings.pop("task")
    settings.pop("eval", None)
    c = build(DreamConfig, settings)
    cuts = phases(c)
    if c.prompts:
        return run_prompts(config, workdir, run, HARMLESS)
    config = to_plain(config)
    config.pop("prompts", None)  # so that a run is the same, wherever its prompt came from
    devices = parallel.devices_for(c.batch_views)
    objective, objective_params, find_front = objective_of(c)
    workdir = check_workdir(workdir, config, harmless=HARMLESS)

    scene = step_config(c)
    tx = make_optimizer(c.optimizer, c.steps)
    base_key = jax.random.key(c.seed)
    state = init_scene(base_key, scene, tx)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore_latest(state) or state

    index = parallel.split_indices(c.batch_views, devices)
    state, objective_params, base_key = parallel.replicate(
        (state, objective_params, base_key), devices
    )
    update = lambda *args: apply_gradients(tx, *args)  # noqa: E731
    draw_views = _view_renderer(scene, c.export.preview_size)

    @functools.cache
    def compiled(phase: Phase):
        asked = objective(phase.latent)
        step = make_sds_step(asked, scene, update, parallel.mean, phase.size, phase.shaded)
        return parallel.pmap(parallel.repeat(step, c.steps_per_dispatch), devices, shared=2)

    turn, facings = round(c.front_after * c.steps), []

    def take(step, state):
        if step == turn > 0:
            mine, params, key = parallel.first_copy((state, objective_params, base_key))
            found = find_front(params, mine.params, step, jax.random.fold_in(key, c.steps))
            facings.append(found)
            state = state._replace(front=parallel.replicate(found.front, devices))
        phase = next(phase for phase in cuts if step < phase.stop)
        return compiled(phase)(state, index, objective_params, base_key)

    def after(done, state, bar, log):
        if done % c.export.views_every < c.steps_per_dispatch:
            _write_views(workdir, draw_views(parallel.first_copy(state), done))
        if done == turn > 0:
            bar.note("asking the prior which side is the front ...")
        if done == turn + c.steps_per_dispatch and facings:
            bar.note(_told(facings[0]))

    state = train(
        take,
        state,
        workdir,
        checkpoints,
        steps=c.steps,
        steps_per_dispatch=c.steps_per_dispatch,
        log_every=c.log_every,
        checkpoint_every=c.checkpoint_every,
        show=("opacity", "grad_norm"),
        after=after,
    )
    _export(workdir, c, scene, parallel.first_copy(state), config)


def objective_of(c: DreamConfig) -> tuple[Callable[[bool], Objective], PyTree, Callable | None]:
    """What the scene is asked to please, for the latent part of the run or not; its parameters; and
    what finds the object's front by them.

    Raises UserError for weights that cannot be had or do not go with the config.
    """
    if c.dream_fields is not None:
        if c.front_after:
            raise UserError(f"front_after is {c.front_after}, but dream_fields cannot find a front")
        if not c.weights:
            raise UserError("dream_fields needs CLIP: name its weights, a folder or repository id")
        clip, clip_params = clips.load(c.weights, c.prior.dtype, c.prior.remat)
        params = dream_fields_params(clip, clip_params, c.prompt)
        return lambda latent: make_dream_fields(clip, c.dream_fields), params, None
    prior, prior_params = load_prior(c.weights, c.prior)
    if c.latent_share:
        if not isinstance(prior, StableDiffusion):
            raise UserError(f"latent_share is {c.latent_share}, but the prior has no latents")
        prior_params["rgb_to_latent"] = fit_rgb_to_latent(prior, prior_params)
    sds = SdsConfig(**{f.name: getattr(c, f.name) for f in dataclasses.fields(SdsConfig)})
    bare = f"{colorless(c.prompt)} {c.textureless_words}" if c.textureless_words.strip() else ""
    params = sds_params(prior, prior_params, c.prompt, c.negative_prompt, bare)

    def objective(latent):
        return make_sds(prior, sds, c.steps, prior.encode_linear if latent else prior.encode)

    return objective, params, make_find_front(prior, step_config(c))


def _told(found: Facing) -> str:
    """What a person is told about the front that was found."""
    if not found.front:
        return "the front is at azimuth 0, where it should be"
    return (
        f"the front is at azimuth {90 * int(found.front)}, by {found.gain / found.error:.1f} "
        "standard errors; views are named from there"
    )


def headlight(camera_position) -> Shading:
    """A light at the camera, a little above it, for the pictures that people look at."""
    above = camera_position + jnp.array([0.0, 0.0, 1.0])
    return Shading(above, jnp.float32(0.45), jnp.float32(0.55), jnp.float32(0.0))


def _view_renderer(scene: StepConfig, size: int):
    """A function from state, step and (azimuth, elevation) pairs to stacked renderings."""

    @jax.jit
    def one(params, front, step, azimuth, elevation):
        camera = middle_camera(scene.camera, azimuth, elevation)
        return render_image(
            field_fn(params, scene, step, front),
            camera,
            size,
            encoding_variance(scene, step),
            headlight(camera.position),
            jnp.ones((1, 1, 3)),
            scene.render,
        )

    def draw(state, step, angles=ANGLES, shown=lambda count: None):
        seen = []
        for azimuth, elevation in angles:
            picture = one(state.params, state.front, step, azimuth, elevation)
            seen.append(jax.device_get(picture))
            shown(len(seen))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *seen)

    return draw


def _write_views(workdir: Path, seen) -> None:
    sheet = contact_sheet(seen.rgb, seen.normal, seen.depth, seen.opacity)
    write_png(workdir / "views.png", sheet)


def _export(workdir: Path, c: DreamConfig, scene: StepConfig, state: SceneState, settings) -> None:
    """Write views, turntable, mesh and report, and say so."""
    began = time.monotonic()
    _write_views(workdir, _view_renderer(scene, c.export.views_size)(state, c.steps))
    frames = c.export.video_frames
    angles = tuple((360.0 * i / frames, 15.0) for i in range(frames))
    print("the turntable:")
    with Progress(frames) as bar:
        draw = _view_renderer(scene, c.export.video_size)
        write_video(
            workdir / "turntable.mp4", to_uint8(draw(state, c.steps, angles, bar.update).rgb)
        )
    print("the mesh ...", flush=True)

    variance = jnp.full((1, 3), scene.encoding.variance[1], jnp.float32)
    field = field_fn(state.params, scene, c.steps, state.front)
    query = jax.jit(lambda points: field(points, variance))
    missing = None
    try:
        mesh = extract_mesh(
            lambda points: query(points).density,
            lambda points: query(points).albedo,
            c.render.radius,
            c.export.mesh,
        )
        write_mesh(workdir / "mesh.glb", mesh)
        pictures = [render_mesh(mesh, a, e, size=c.export.views_size) for a, e in ANGLES]
        write_png(workdir / "mesh.png", grid(np.stack(pictures), columns=len(ANGLES), tile=128))
    except UserError as error:
        missing = error
    history = read_history(workdir)
    report = Report(
        prompt=c.prompt,
        mesh=None if missing else workdir / "mesh.glb",
        missing=str(missing or ""),
        turntable=workdir / "turntable.mp4",
        views=workdir / "views.png",
        steps=[row["step"] for row in history],
        curves={
            name: [row.get(name, float("nan")) for row in history]
            for name in ("opacity", "grad_norm", "residual_norm")
        },
        settings=settings,
        seconds=spent(workdir) + time.monotonic() - began,
        facts={"front found at": f"{90 * int(state.front)} degrees"} if c.front_after else {},
    )
    write_report(workdir / "report.html", report)
    if missing:
        raise missing
    for name in ("report.html", "mesh.glb", "turntable.mp4", "views.png", "mesh.png"):
        print(f"wrote {workdir / name}")


def load_scene(run_dir: str | Path) -> tuple[DreamConfig, StepConfig, SceneState]:
    """The config, the scene and the state of the finished run in `run_dir`.

    Raises UserError where there is no run of this task, or one that is not finished.
    """
    run_dir = Path(run_dir)
    path = run_dir / CONFIG_FILE
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if settings.pop("task", None) != "dream":
        raise UserError(f"{run_dir} is not a run of task dream")
    settings.pop("eval", None)
    c = build(DreamConfig, settings)
    scene = step_config(c)
    tx = make_optimizer(c.optimizer, c.steps)
    template = jax.eval_shape(lambda key: init_scene(key, scene, tx), jax.random.key(c.seed))
    checkpoints = run_dir / "checkpoints"
    state = Checkpoints(checkpoints).restore_latest(template) if checkpoints.is_dir() else None
    done = int(state.step) if state else 0
    if done < c.steps:
        raise UserError(f"the run in {run_dir} is not finished: step {done} of {c.steps}")
    return c, scene, state
