"""Measure how fast this device dreams and trains, beside what is possible on it.

Each row is a program as the tasks run it, compiled ahead for its shapes on one device (a step: on
all that a run would use) and timed as the median of several calls. What is possible is

    seconds = max(operations / rate of a large matrix product, bytes / rate of a copy),

both rates measured in the same run, the product's in the dtype of the row's network. Operations are
those of matrix products and convolutions alone. A loop counts as often as it goes round, which
XLA's own count leaves out; rays that hit nothing count, and what is computed twice to save memory
counts once. Bytes are the program's arguments and results, which it must read and write whatever
happens between. Memory is XLA's plan of the compiled program; one that does not fit is left out.
"""

import dataclasses
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamjax.diffusion.schedule import scaled_linear
from dreamjax.distill.objective import Frozen
from dreamjax.distill.step import Phase, draw_shot, init_state, make_sds_step
from dreamjax.export.memory import available
from dreamjax.nets.stable_diffusion.clip import CLIPTextConfig
from dreamjax.nets.stable_diffusion.unet import SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import VAEConfig
from dreamjax.nets.text import Text
from dreamjax.priors import words
from dreamjax.priors.base import Prior, Prompt
from dreamjax.priors.stable_diffusion import StableDiffusion, StableDiffusionNets
from dreamjax.priors.toybox import Toybox
from dreamjax.settings import Range, settings
from dreamjax.tasks import train_prior
from dreamjax.tasks.dream import Dream, make_program, make_update
from dreamjax.tasks.train_prior import Pictures, TrainPrior
from dreamjax.toybox.reading import init_heads
from dreamjax.training import parallel
from dreamjax.training.fit import Batch, make_step
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import Adam
from dreamjax.training.state import init_state as init_net
from dreamjax.workdir import claim, write_text

PROMPT = "a red ball"
LONGEST = 20.0  # seconds after which no row is timed once more
FIELD = 131_072  # Gaussians that the field is asked for at most


class Program(NamedTuple):
    """What is timed: `function` of `args`, arrays or their shapes; `steps` of it in one call.

    With `goes_on` the first argument is the state that the next call begins with. `counted` is
    another function of the same arguments whose operations are counted, where it has loops.
    """

    name: str
    dtype: str
    function: Any
    args: tuple
    steps: int = 1
    goes_on: bool = False
    counted: Callable | None = None


class Row(NamedTuple):
    """A program timed on one device; `memory` and `traffic` are bytes, `operations` a count."""

    name: str
    dtype: str
    seconds: float
    operations: float
    traffic: float
    memory: float


class Ceilings(NamedTuple):
    """What the device reaches: operations a second by dtype, bytes a second of a copy."""

    products: dict[str, float]
    copy: float

    def share(self, row: Row) -> tuple[float, str]:
        """(possible seconds over measured ones, which of both ceilings the former is from)."""
        products = row.operations / self.products[row.dtype]
        copies = row.traffic / self.copy
        bound = "products" if products >= copies else "copies"
        return max(products, copies) / row.seconds, bound


@settings
class UntrainedStableDiffusion(StableDiffusion):
    """Stable Diffusion 1.5 without weights: what it loads are their shapes."""

    @functools.cached_property
    def net(self) -> StableDiffusionNets:
        """The networks at their published sizes."""
        both = {"dtype": self.dtype, "remat": self.remat}
        unet = SDUNetConfig(cross_attention_dim=768, fused=self.fused, **both)
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        return StableDiffusionNets(unet, VAEConfig(**both), text, scaled_linear(1000), "eps", "")

    def load(self) -> PyTree:
        """Shapes of the UNet's, the autoencoder's and the cheap encoder's parameters."""
        shapes = jax.eval_shape(self.net.init, jax.random.key(0))
        return {
            "unet": shapes["unet"],
            "vae": shapes["vae"],
            "rgb_to_latent": _shape(4, self.net.vae.latent_channels),
        }

    def embed(self, params: PyTree, prompt: Prompt) -> words.ViewTexts:
        """Shapes of the texts of all views."""

        def texts(count: int) -> Text:
            text, length = self.net.text, self.net.text.max_position_embeddings
            mask = jax.ShapeDtypeStruct((count, length), jnp.bool_)
            return Text(cast(Any, _shape(count, length, text.hidden_size)), cast(Any, mask))

        return words.ViewTexts(texts(len(words.all_names(words.PAPER_VIEWS))), texts(1))


@settings
class Benchmark:
    """Times dreaming and training on this machine, part by part; writes benchmark.md."""

    repeats: Annotated[int, Range(1, 1000)] = 5  # calls of each, of which the median counts
    matmul: Annotated[int, Range(1, 65_536)] = 4096  # side of the square matrices of the ceiling
    copy: Annotated[int, Range(1, 65_536)] = 256  # MiB that are copied for the ceiling
    batch_size: Annotated[int, Range(1, 65_536)] = 32  # pictures of the training step
    toybox: Dream | None = Dream()  # dreams that are timed; none: not
    sd15: Dream | None = None  # with random weights where its prior is given none
    tpu_v4: Dream | None = None  # DreamFusion's set-up

    def run(self, workdir: str | Path) -> None:
        """Time everything; prints the table and writes `benchmark.md`, anew after each part."""
        workdir = claim(workdir, self)
        dreams = {name: getattr(self, name) for name in ("toybox", "sd15", "tpu_v4")}
        parts = {
            **{name: dream_programs(name, task) for name, task in dreams.items() if task},
            "training": iter([training_program(self.batch_size)]),
        }
        rows, notes, text = [], [], ""
        with Progress(len(parts), 0, show=()) as bar:
            bar.note("timing a matrix product and a copy ...")
            ceilings = measure_ceilings(self.matmul, self.copy, self.repeats)
            for number, (name, programs) in enumerate(parts.items()):
                found, skipped = measure_all(programs, self.repeats, bar.note)
                rows += found
                notes += [f"{name}: {skipped}"] if skipped else []
                text = table(rows, ceilings, notes)
                write_text(workdir / "benchmark.md", text)
                bar.update(number + 1)
        print(text)
        print(f"wrote {workdir / 'benchmark.md'}")


def _shape(*sides: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def dream_programs(name: str, task: Dream) -> Iterator[Program]:
    """The parts of a dream's step as one device runs them, and the step of each phase."""
    task = runnable(task)
    prior, dtype = cast(Prior, task.prior), getattr(task.prior, "dtype", "float32")
    devices = parallel.devices_for(task.batch_views)
    views, key = task.batch_views // len(devices), jax.random.key(0)
    index = jnp.arange(views, dtype=jnp.int32)
    frozen = task.objective.load(prior, Prompt(PROMPT))
    state = start(task, frozen)
    phase = task.phases[-1]

    def rays(key, index, front):
        return draw_shot(key, index, task, phase, front).rays

    title = f"{name}: rays of {_pictures(views, phase.size)}"
    yield Program(title, "float32", rays, (key, index, state.front))
    yield from _field_programs(name, task, state.scene.params["field"])

    def pull(params, rgb, keys):
        """The encoder and the way back to the picture."""
        return jax.grad(lambda rgb: jnp.sum(prior.encode(params, rgb, keys)))(rgb)

    rgb = _shape(views, phase.size, phase.size, 3)
    title = f"{name}: prior, encode {_pictures(views, phase.size)} and back"
    yield Program(title, dtype, pull, (frozen.params, rgb, jax.random.split(key, views)))

    def predict(params, embedded, z_t, t, shot_key):
        shot = draw_shot(shot_key, jnp.arange(views), task, phase, jnp.zeros((), jnp.int32))
        both = prior.condition(embedded, shot.views)
        rows = jax.tree.map(lambda *x: jnp.concatenate(x), both.cond, both.uncond)
        rows = jax.tree.map(lambda x: jnp.repeat(x, getattr(task.objective, "draws", 1), 0), rows)
        return prior.predict(params, z_t, t, rows)

    count = 2 * views * getattr(task.objective, "draws", 1)
    z_t, t = _shape(count, *prior.shape), jnp.full(count, prior.schedule.num_steps // 2)
    title = f"{name}: prior, predict {count} of {prior.shape[0]} x {prior.shape[1]}"
    yield Program(title, dtype, predict, (frozen.params, frozen.embedded, z_t, t, key))
    for phase in task.phases:
        yield step_program(name, task, phase, devices, state, frozen)


def _field_programs(name: str, task: Dream, params: PyTree) -> Iterator[Program]:
    """The field and its gradient, of as many Gaussians as it is asked for together."""
    rays = task.renderer.chunk or task.phases[-1].size ** 2
    count = min(FIELD, rays * task.renderer.samples)
    dtype, given = getattr(task.field, "dtype", "float32"), (params, _shape(count, 3))

    def forward(params, mean):
        return task.field(params, mean, jnp.full((1, 1), 0.01))

    def gradient(params, mean):
        def loss(params):
            found = forward(params, mean)
            return jnp.sum(found.log_density) + jnp.sum(found.albedo)

        return jax.grad(loss)(params)

    yield Program(f"{name}: field, {count:,} Gaussians", dtype, forward, given)
    yield Program(f"{name}: field and its gradient, the same", dtype, gradient, given)


def step_program(name: str, task: Dream, phase: Phase, devices, state, frozen: Frozen) -> Program:
    """A dispatch of a phase, as a run takes it."""
    index, key = parallel.split_indices(task.batch_views, devices), jax.random.key(0)
    renderer = dataclasses.replace(task.renderer, chunk=0)
    update = make_update(*_optimizers(task))
    counted = make_sds_step(
        dataclasses.replace(task, renderer=renderer),
        task.prior,
        task.objective,
        phase,
        task.steps,
        update,
        parallel.alone,
    )

    def one_device(state, index, frozen, key):
        return counted(state, index[0], frozen, key)

    look = "shaded" if phase.lit else "in albedo"
    look += ", cheap latents" if phase.cheap else ""
    return Program(
        f"{name}: step, {_pictures(task.batch_views, phase.size)}, {look}",
        getattr(task.prior, "dtype", "float32"),
        make_program(task, phase, devices),
        (state, index, frozen, key),
        steps=task.steps_per_dispatch,
        goes_on=True,
        counted=one_device,
    )


def _pictures(count: int, size: int) -> str:
    return f"{count} view{'s' if count > 1 else ''} of {size} x {size}"


def _optimizers(task: Dream):
    return task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)


def start(task: Dream, frozen: Frozen):
    """The state that a dream begins with."""
    key = jax.random.key(task.seed)
    return init_state(key, task, task.objective.init(key, task.prior, frozen), *_optimizers(task))


def runnable(task: Dream) -> Dream:
    """The dream with random weights where it lacks them, and as a CPU runs it on a CPU.

    A CPU has no 16-bit arithmetic worth the name and takes one step a dispatch.
    """
    if isinstance(task.prior, StableDiffusion) and not task.prior.weights:
        fields = dataclasses.fields(StableDiffusion)
        given = {field.name: getattr(task.prior, field.name) for field in fields}
        task = dataclasses.replace(task, prior=UntrainedStableDiffusion(**given))
    if jax.default_backend() != "cpu":
        return task
    wide = _in_float32(task.prior), _in_float32(task.field)
    return dataclasses.replace(task, steps_per_dispatch=1, prior=wide[0], field=wide[1])


def _in_float32(part: Any) -> Any:
    """A prior or a field without 16-bit arithmetic, where it has a choice."""
    names = {field.name for field in dataclasses.fields(part)}
    changes = {"dtype": "float32", "fused": False}
    return dataclasses.replace(part, **{n: v for n, v in changes.items() if n in names})


def training_program(count: int) -> Program:
    """A training step of the shipped prior, as `training.fit` takes it."""
    prior = Toybox()
    net, params = prior.net, prior.load()
    size, devices = net.image_size, parallel.devices_for(count)
    problem, tx = train_prior.make_problem(net, TrainPrior()), Adam().make(1000)
    data = Pictures(
        np.zeros((count, size, size, 3), np.uint8), np.ones((count, net.text.length), np.int32)
    )
    batch = parallel.split_batch(Batch(np.arange(count, dtype=np.int32), data), devices)
    state = init_net(params | {"heads": init_heads(net.text.dim)}, tx, problem.memory)
    step = parallel.pmap(make_step(problem, tx, 0.999), devices)
    name = f"training step of the shipped prior, {count} of {size} x {size}"
    return Program(name, "float32", step, (state, batch, jax.random.key(0)), goes_on=True)


def measure_all(
    programs: Iterator[Program], repeats: int, note: Callable[[str], None]
) -> tuple[list[Row], str]:
    """(rows of the programs that fit into memory, one line about those that do not)."""
    rows, large = [], []
    for program in programs:
        note(f"{program.name} ...")
        found = measure(program, repeats)
        rows += [found] if isinstance(found, Row) else []
        large += [] if isinstance(found, Row) else [found]
    if not large:
        return rows, ""
    there = _memory_here() / 2**30
    return rows, (
        f"{len(large)} programs of up to {max(large) / 2**30:.1f} GiB are left out: this machine "
        f"has {there:.1f} GiB to give"
    )


def measure(program: Program, repeats: int) -> Row | float:
    """The row of a program, or the bytes that it needs where these are not there."""
    function = program.function
    function = function if hasattr(function, "lower") else jax.jit(function)
    compiled = function.lower(*program.args).compile()
    plan: Any = compiled.memory_analysis()
    traffic = plan.argument_size_in_bytes + plan.output_size_in_bytes
    memory = traffic + plan.temp_size_in_bytes - plan.alias_size_in_bytes
    if memory > _memory_here():
        return float(memory)
    operations = count_operations(program.counted or function, *program.args)
    args = filled(program.args, compiled)
    seconds = timed(compiled, args, repeats, program.goes_on) / program.steps
    return Row(program.name, program.dtype, seconds, operations, traffic, memory)


def _memory_here() -> float:
    """Bytes that a program can have on the first device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return available()


def filled(args: tuple, compiled: Any) -> tuple:
    """Arguments as the compiled program takes them, random where only their shape is known."""
    rng = np.random.default_rng(0)

    def array(leaf, sharding):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = leaf.shape
            if leaf.dtype == jnp.bool_:
                leaf = np.ones(shape, bool)
            else:
                fan_in = math.prod(shape[:-1]) if len(shape) > 1 else 100
                leaf = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))
        # A true copy: what is donated must not be another program's.
        return jax.device_put(jnp.array(leaf), sharding)

    shardings, _ = compiled.input_shardings
    return jax.tree.map(array, args, tuple(shardings))


def count_operations(function: Callable, *args) -> float:
    """Operations of the matrix products and convolutions of one call, on one device."""
    return _operations(jax.make_jaxpr(function)(*args).jaxpr)


def _operations(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            sums = math.prod(left[axis] for axis in contracted)
            total += 2.0 * equation.outvars[0].aval.size * sums
        elif name == "conv_general_dilated":
            total += 2.0 * _convolution(equation)
        elif name == "cond":
            total += max(_operations(branch.jaxpr) for branch in params["branches"])
        else:
            inner = sum(_operations(part) for part in _parts(params))
            total += inner * (params["length"] if name == "scan" else 1)
    return total


def _convolution(equation: Any) -> float:
    """Products of a convolution, without those with zeros around and between the inputs."""
    image, kernel = (given.aval.shape for given in equation.invars)
    params, out = equation.params, equation.outvars[0].aval.shape
    places = params["dimension_numbers"]
    (batch, features, *_), (_, inputs, *_) = places.out_spec, places.rhs_spec
    total = float(out[batch] * out[features] * kernel[inputs])
    for axis, (before, _) in enumerate(params["padding"]):
        stride, holes = params["window_strides"][axis], params["lhs_dilation"][axis]
        begin = np.arange(out[places.out_spec[2 + axis]]) * stride - before
        steps = np.arange(kernel[places.rhs_spec[2 + axis]]) * params["rhs_dilation"][axis]
        place = begin[:, None] + steps
        last = (image[places.lhs_spec[2 + axis]] - 1) * holes
        total *= np.count_nonzero((place >= 0) & (place <= last) & (place % holes == 0))
    return total


def _parts(params: dict) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def measure_ceilings(side: int, mebibytes: int, repeats: int) -> Ceilings:
    """What the first device reaches: products of `side` x `side` matrices, and a copy in place."""
    dtypes = ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16", "float16")
    products = {}
    for dtype in dtypes:
        a = jnp.ones((side, side), dtype)
        seconds = timed(jax.jit(lambda a: a @ a), (a,), repeats, goes_on=False)
        products[dtype] = 2.0 * side**3 / seconds
    x = jnp.ones(mebibytes * 2**18, jnp.float32)
    count = 2.0 * x.nbytes
    copy = jax.jit(lambda x: (x + 1.0,), donate_argnums=0)
    return Ceilings(products, count / timed(copy, (x,), repeats, goes_on=True))


def timed(function: Callable, args: tuple, repeats: int, goes_on: bool) -> float:
    """Median seconds of a call after the first; fewer than `repeats` of long ones.

    With `goes_on` the first of a call's results is the first argument of the next.
    """
    seconds = []
    while len(seconds) <= repeats and (len(seconds) < 2 or sum(seconds) < LONGEST):
        began = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - began)
        args = (result[0], *args[1:]) if goes_on else args
    return float(np.median(seconds[1:]))


def peak_memory() -> float:
    """The most bytes in use so far: of the first device, or of this process on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def table(rows: Sequence[Row], ceilings: Ceilings, notes: Sequence[str] = ()) -> str:
    """The rows as Markdown, below the machine and its ceilings."""
    device = jax.devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    machine = f"{device.device_kind} {kind}".strip()
    products = [f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in ceilings.products.items()]
    lines = [
        f"- machine: {machine}, {jax.device_count()} device(s), {os.cpu_count()} CPU cores",
        f"- date: {time.strftime('%Y-%m-%d')}; jax {jax.__version__}",
        f"- ceilings: {', '.join(products)}; copies {ceilings.copy / 1e9:.1f} GB/s",
        f"- peak memory: {peak_memory() / 2**30:.2f} GiB",
        *(f"- {note}" for note in notes),
        "",
        "| what | time | GFLOP | GFLOP/s | memory | of what is possible |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share, bound = ceilings.share(row)
        lines.append(
            f"| {row.name} | {clock(row.seconds)} | {row.operations / 1e9:.3g} "
            f"| {row.operations / row.seconds / 1e9:.3g} | {row.memory / 2**20:,.0f} MiB "
            f"| {100 * share:.2g} % ({bound}) |"
        )
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-6:.3g} µs"
