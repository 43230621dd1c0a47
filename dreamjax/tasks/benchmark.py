"""Measure how fast this machine trains, samples and dreams, beside its matmul peak.

Every row is timed as it is used, after compilation, the median of several calls. Its floating-point
operations are XLA's own count of the compiled program (a sampler's are those of its network calls),
so "of peak" says how much of what a large matrix product reaches is put to use.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamjax.distill.step import init_state as init_dream
from dreamjax.distill.step import make_sds_step
from dreamjax.priors.base import Prompt
from dreamjax.priors.sampling import Sampler, sample
from dreamjax.priors.toybox import Toybox
from dreamjax.settings import Range, settings
from dreamjax.tasks import train_diffusion, train_prior
from dreamjax.tasks.dream import Dream, make_update
from dreamjax.tasks.train_diffusion import Labelled, TrainDiffusion
from dreamjax.tasks.train_prior import Pictures, TrainPrior
from dreamjax.toybox.reading import init_heads
from dreamjax.training import parallel
from dreamjax.training.fit import Batch, Problem, make_step
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import Adam
from dreamjax.training.state import init_state
from dreamjax.workdir import claim, write_text

SAMPLERS = (
    Sampler(method="ancestral", steps=100),
    Sampler(method="ddim", steps=50),
    Sampler(method="dpm_solver", steps=20),
)
PROMPT = "a red ball"


class Row(NamedTuple):
    """A thing timed: how many of `unit` a call makes, its seconds and its operations."""

    name: str
    unit: str
    count: int
    seconds: float
    flops: float


@settings
class Benchmark:
    """Times training, sampling and dreaming on this machine; writes benchmark.md."""

    repeats: Annotated[int, Range(1, 1000)] = 5  # calls of each, of which the median counts
    matmul: Annotated[int, Range(1, 65_536)] = 2048  # side of the square matrices of the peak
    batch_size: Annotated[int, Range(1, 65_536)] = 32  # pictures trained on and drawn at a time
    prior: Toybox = Toybox()  # the prior that is trained, drawn from and asked
    dream: Dream = Dream()  # the dream whose last phase is timed
    digits: TrainDiffusion = TrainDiffusion()  # the model of digits that is timed

    def run(self, workdir: str | Path) -> None:
        """Time everything; prints the table and writes `benchmark.md`."""
        workdir = claim(workdir, self)
        parts = (_matmul, _prior_training, _prior_samplers, _dreaming, _digits)
        rows = []
        with Progress(len(parts), 0, show=()) as bar:
            for number, part in enumerate(parts):
                bar.note(f"timing {part.__name__.strip('_').replace('_', ' ')} ...")
                rows += part(self)
                bar.update(number + 1)
        text = table(rows)
        write_text(workdir / "benchmark.md", text)
        print(text)
        print(f"wrote {workdir / 'benchmark.md'}")


def timed(call: Callable, repeats: int) -> float:
    """Median seconds of `call()` once it is compiled; what it returns is waited for."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def timed_steps(step: Callable, state: PyTree, batch: PyTree, shared: tuple, repeats: int) -> float:
    """Median seconds of a compiled step, each going on from the state before."""
    latest = [state]

    def call():
        latest[0], metrics = step(latest[0], batch, *shared)
        return metrics

    return timed(call, repeats)


def flops_of(function: Callable, *args) -> float:
    """Floating-point operations of one call, as XLA counts them (loops once: give it none)."""
    cost: Any = jax.jit(function).lower(*args).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost).get("flops", np.nan))


def _matmul(task: Benchmark) -> list[Row]:
    n, dtype = task.matmul, task.prior.dtype
    count = jax.local_device_count()
    product = jax.pmap(lambda x: x @ x)
    a = product(jnp.zeros((count, n, n), dtype))
    seconds = timed(lambda: product(a), task.repeats)
    return [Row(f"matmul {n} x {n}, {dtype}", "products", count, seconds, 2.0 * n**3 * count)]


def _training(
    task: Benchmark, name: str, net: Any, problem: Problem, params: PyTree, data: PyTree, cond
) -> Row:
    """A training step on a batch like `data`, as `training.fit` takes it."""
    count = len(jax.tree.leaves(data)[0])
    devices = parallel.devices_for(count)
    tx = Adam().make(1000)
    step = parallel.pmap(make_step(problem, tx, 0.999), devices)
    batch = parallel.split_batch(Batch(np.arange(count, dtype=np.int32), data), devices)
    state = init_state(jax.tree.map(jnp.array, params), tx, problem.memory)
    state, key = parallel.replicate((state, jax.random.key(0)), devices)
    seconds = timed_steps(step, state, batch, (key,), task.repeats)
    x, t = jnp.zeros((count, *net.shape)), jnp.zeros(count, jnp.int32)

    def loss(params):
        return jnp.sum(net.predict(params, x, t, cond))

    return Row(name, "images", count, seconds, flops_of(jax.grad(loss), params))


def _prior_training(task: Benchmark) -> list[Row]:
    net, params = task.prior.net, task.prior.load()
    size, count = net.image_size, task.batch_size
    data = Pictures(
        np.zeros((count, size, size, 3), np.uint8), np.ones((count, net.text.length), np.int32)
    )
    trained = params | {"heads": init_heads(net.text.dim)}
    problem = train_prior.make_problem(net, TrainPrior())
    text = net.embed_texts(params, [PROMPT] * count)
    name = f"training step of the shipped prior, {size} x {size}, batch {count}"
    return [_training(task, name, net, problem, trained, data, text)]


def _samplers(
    task: Benchmark, name: str, net: Any, params: PyTree, prompts: list[str], guidance: float
) -> list[Row]:
    calls = len(prompts) * (2 if guidance != 1.0 else 1)
    cond = net.embed_texts(params, prompts * (calls // len(prompts)))
    x, t = jnp.zeros((calls, *net.shape)), jnp.zeros(calls, jnp.int32)
    flops = flops_of(lambda params: net.predict(params, x, t, cond), params)
    rows = []
    for unguided in SAMPLERS:
        sampler = dataclasses.replace(unguided, guidance_scale=guidance)

        def call(sampler=sampler):
            return sample(net, params, prompts, jax.random.key(0), sampler)

        seconds = timed(call, min(task.repeats, 3))
        guided = f", guidance {guidance:g}" if guidance != 1.0 else ""
        label = f"{name}: {sampler.method}, {sampler.steps} steps{guided}"
        rows.append(Row(label, "images", len(prompts), seconds, flops * int(sampler.steps)))
    return rows


def _prior_samplers(task: Benchmark) -> list[Row]:
    net, params = task.prior.net, task.prior.load()
    return _samplers(task, "shipped prior", net, params, [PROMPT] * task.batch_size, 4.0)


def _dreaming(task: Benchmark) -> list[Row]:
    prior, dream = task.prior, task.dream
    phase, views = dream.phases[-1], dream.batch_views
    devices = parallel.devices_for(views)
    tx = dream.optimizer.make(dream.steps), dream.objective_optimizer.make(dream.steps)
    frozen = dream.objective.load(prior, Prompt(PROMPT))
    step = make_sds_step(
        dream, prior, dream.objective, phase, dream.steps, make_update(*tx), parallel.mean
    )
    key = jax.random.key(0)
    state = init_dream(key, dream, dream.objective.init(key, prior, frozen), *tx)
    state, *shared = parallel.replicate((state, frozen, key), devices)
    index = parallel.split_indices(views, devices)
    step = parallel.pmap(step, devices, shared=2)
    seconds = timed_steps(step, state, index, tuple(shared), task.repeats)
    look = "shaded" if phase.lit else "in albedo"
    name = f"dreaming step, {views} views of {phase.size} x {phase.size}, {look}"
    return [Row(name, "views", views, seconds, float("nan"))]


def _digits(task: Benchmark) -> list[Row]:
    digits, count = task.digits, task.digits.batch_size
    net = train_diffusion.make_net(digits, digits.data.load("train"))
    params = jax.jit(net.init)(jax.random.key(0))
    data = Labelled(np.zeros((count, *net.shape), np.float32), np.zeros(count, np.int32))
    problem = train_diffusion.make_problem(net, digits, flip=False)
    label = jnp.zeros(count, jnp.int32) if net.classes else None
    name = f"training step of the digits, batch {count}"
    row = _training(task, name, net, problem, params, data, label)
    prompts = [net.classes[0] if net.classes else ""] * task.batch_size
    return [row, *_samplers(task, "digits", net, params, prompts, 1.0)]


def table(rows: list[Row]) -> str:
    """The rows as Markdown; the first is the peak."""
    device = jax.devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    machine = f"{device.device_kind} {kind}".strip()
    peak = rows[0].flops / rows[0].seconds
    lines = [
        f"- machine: {machine}, {jax.device_count()} device(s), {os.cpu_count()} CPU cores",
        f"- date: {time.strftime('%Y-%m-%d')}; jax {jax.__version__}",
        f"- matmul peak: {peak / 1e9:.0f} GFLOP/s ({rows[0].name})",
        "",
        "| what | a second | GFLOP/s | of peak |",
        "|---|---|---|---|",
    ]
    for row in rows[1:]:
        rate = row.flops / row.seconds
        shares = ["-", "-"] if np.isnan(rate) else [f"{rate / 1e9:.1f}", f"{rate / peak:.0%}"]
        speed = f"{row.count / row.seconds:.3g} {row.unit}"
        lines.append(f"| {row.name} | {speed} | " + " | ".join(shares) + " |")
    return "\n".join(lines) + "\n"
