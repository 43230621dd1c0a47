"""`task = benchmark`: how fast this machine trains, samples and dreams, beside its matmul peak.

Every row is timed as it is used, after compilation, the median of several calls. Its floating-point
operations are XLA's own count of the compiled program (a sampler's are those of its network calls),
so "of peak" says how much of what a large matrix product reaches is put to use.
"""

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import build, check_workdir, write_atomic
from dreamjax.distill.sds import SdsConfig, make_sds, sds_params
from dreamjax.distill.step import StepConfig, init_scene, make_sds_step
from dreamjax.priors import toybox
from dreamjax.tasks import train_diffusion, train_prior
from dreamjax.tasks.images import load
from dreamjax.tasks.reading import init_heads
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.training import parallel
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from dreamjax.training.state import init_prior_state

SAMPLERS = (("ancestral", 100), ("ddim", 50), ("dpm_solver", 20))


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed: `repeats` calls of each; `digits` is the config of `train_diffusion`."""

    repeats: int = 5
    matmul: int = 2048
    batch_size: int = 32
    views: int = 4
    render_size: int = 32
    unet_dtype: str = "float32"
    scene: StepConfig = StepConfig()


class Row(NamedTuple):
    """A thing timed: how many of `unit` a call makes, its seconds and its operations."""

    name: str
    unit: str
    count: int
    seconds: float
    flops: float


def run(config, workdir: str) -> None:
    """Time everything; prints the table and writes `benchmark.md`."""
    settings = dict(config)
    settings.pop("task")
    digits = dict(settings.pop("digits"))
    c = build(BenchmarkConfig, settings)
    workdir = check_workdir(workdir, config)
    parts = [_matmul, _prior_training, _prior_samplers, _dreaming]
    parts = [functools.partial(part, c) for part in parts]
    parts.append(functools.partial(_digits, c, digits))
    rows = []
    with Progress(len(parts), 0, show=()) as bar:
        for number, part in enumerate(parts):
            rows += part()
            bar.update(number + 1)
    text = table(rows)
    write_atomic(workdir / "benchmark.md", text)
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


def flops_of(function: Callable, *args) -> float:
    """Floating-point operations of one call, as XLA counts them (loops once: give it none)."""
    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost).get("flops", np.nan))


def _matmul(c: BenchmarkConfig) -> list[Row]:
    n = c.matmul
    count = jax.local_device_count()
    product = jax.pmap(lambda x: x @ x)
    a = product(jnp.zeros((count, n, n), c.unet_dtype))
    seconds = timed(lambda: product(a), c.repeats)
    return [
        Row(f"matmul {n} x {n}, {c.unet_dtype}", "products", count, seconds, 2.0 * n**3 * count)
    ]


def _prior_training(c: BenchmarkConfig) -> list[Row]:
    prior, params = _shipped(c)
    settings = train_prior.TrainPriorConfig(batch_size=c.batch_size)
    trained = params | {"heads": init_heads(prior.text)}
    tx = make_optimizer(OptimizerConfig(), 1000)
    devices = parallel.devices_for(c.batch_size)
    step = parallel.pmap(train_prior.make_step(prior, settings, tx), devices)
    size = prior.image_size
    batch = train_prior.Batch(
        np.arange(c.batch_size, dtype=np.int32),
        np.zeros((c.batch_size, size, size, 3), np.uint8),
        np.ones((c.batch_size, prior.text.length), np.int32),
    )
    batch = parallel.split_batch(batch, devices)
    held = list(parallel.replicate((init_prior_state(trained, tx), jax.random.key(0)), devices))

    def call():
        held[0], metrics = step(held[0], batch, held[1])
        return metrics

    x = jnp.zeros((c.batch_size, size, size, 3))
    t = jnp.zeros(c.batch_size, jnp.int32)
    text = prior.embed(params, ["a red ball"] * c.batch_size)
    loss = lambda params: jnp.sum(prior.output(params, x, t, text))  # noqa: E731
    flops = flops_of(jax.grad(loss), params)
    seconds = timed(call, c.repeats)
    name = f"training step of the shipped prior, {size} x {size}, batch {c.batch_size}"
    return [Row(name, "images", c.batch_size, seconds, flops)]


def _samplers(c: BenchmarkConfig, name, prior, params, prompts, guidance) -> list[Row]:
    count = len(prompts)
    shape = (count * (2 if guidance != 1.0 else 1), *prior.shape)
    cond = prior.embed(params, prompts * (shape[0] // count))
    x, t = jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32)
    flops = flops_of(lambda params: prior.output(params, x, t, cond), params)
    rows = []
    for sampler, steps in SAMPLERS:
        config = SamplerConfig(sampler=sampler, steps=steps, guidance_scale=guidance)
        call = lambda: sample(prior, params, prompts, jax.random.key(0), config)  # noqa: E731, B023
        seconds = timed(call, min(c.repeats, 3))
        guided = f", guidance {guidance:g}" if guidance != 1.0 else ""
        label = f"{name}: {sampler}, {steps} steps{guided}"
        rows.append(Row(label, "images", count, seconds, flops * steps))
    return rows


def _prior_samplers(c: BenchmarkConfig) -> list[Row]:
    prior, params = _shipped(c)
    prompts = ["a red ball"] * c.batch_size
    return _samplers(c, "shipped prior", prior, params, prompts, 4.0)


def _digits(c: BenchmarkConfig, settings: dict) -> list[Row]:
    settings = {k: v for k, v in settings.items() if k != "task"}
    net = dict(settings.pop("net"))
    digits = build(train_diffusion.TrainDiffusionConfig, settings)
    data = load(digits.data, "train")
    prior = train_diffusion.make_prior(digits, net, data)
    tx = make_optimizer(digits.optimizer, digits.steps)
    devices = parallel.devices_for(digits.batch_size)
    step = parallel.pmap(train_diffusion.make_step(prior, digits, tx), devices)
    batch = train_diffusion.Batch(
        np.arange(digits.batch_size, dtype=np.int32),
        np.zeros((digits.batch_size, *prior.shape), np.float32),
        np.zeros(digits.batch_size, np.int32),
    )
    state = train_diffusion.init_state(prior, tx, 0)
    params = jax.tree.map(jnp.array, state.params)
    batch = parallel.split_batch(batch, devices)
    held = list(parallel.replicate((state, jax.random.key(0)), devices))

    def call():
        held[0], metrics = step(held[0], batch, held[1])
        return metrics

    x = jnp.zeros((digits.batch_size, *prior.shape))
    t = label = jnp.zeros(digits.batch_size, jnp.int32)
    flops = flops_of(jax.grad(lambda p: jnp.sum(prior.output(p, x, t, label))), params)
    seconds = timed(call, c.repeats)
    name = f"training step of the digits, batch {digits.batch_size}"
    rows = [Row(name, "images", digits.batch_size, seconds, flops)]
    return rows + _samplers(c, "digits", prior, params, ["3"] * c.batch_size, 1.0)


def _dreaming(c: BenchmarkConfig) -> list[Row]:
    prior, params = _shipped(c)
    devices = parallel.devices_for(c.views)
    objective = make_sds(prior, SdsConfig(), 1000)
    tx = make_optimizer(OptimizerConfig(), 1000)
    update = lambda *args: apply_gradients(tx, *args)  # noqa: E731
    step = make_sds_step(objective, c.scene, update, parallel.mean, c.render_size, True)
    step = parallel.pmap(step, devices, shared=2)
    state = init_scene(jax.random.key(0), c.scene, tx)
    told = sds_params(prior, params, "a red ball", "")
    held = list(parallel.replicate((state, told, jax.random.key(0)), devices))
    index = parallel.split_indices(c.views, devices)

    def call():
        held[0], metrics = step(held[0], index, held[1], held[2])
        return metrics

    name = f"dreaming step, {c.views} views of {c.render_size} x {c.render_size}, shaded"
    return [Row(name, "views", c.views, timed(call, c.repeats), float("nan"))]


def _shipped(c: BenchmarkConfig):
    prior, params = toybox.load()
    unet = dataclasses.replace(prior.unet, dtype=c.unet_dtype)
    return dataclasses.replace(prior, unet=unet), params


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
