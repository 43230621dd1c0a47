"""The benchmark, with PyTorch's time beside ours: scripts/benchmark --against torch.

The prior's two ways and the steps of the configs toybox and sd15 run here in PyTorch as well, in
one process on the CPU, in float32 and with all cores, each after ours; ours compiled, PyTorch's
eager. That both take the same step is tests/parity/test_torch_dream.py. Arguments are the
benchmark's own, as --config.repeats=3 or --config.sd15=none.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dreamjax.errors import UserError  # noqa: E402
from dreamjax.main import load_config, override  # noqa: E402
from dreamjax.priors.base import Prompt  # noqa: E402
from dreamjax.tasks import benchmark  # noqa: E402
from dreamjax.tasks.benchmark import (  # noqa: E402
    Benchmark,
    Row,
    dream_programs,
    measure,
    runnable,
    timed,
)
from dreamjax.tasks.dream import Dream  # noqa: E402
from tests.parity import torch_dream, torch_priors  # noqa: E402


def toybox_side(task: Dream):
    """(the prior, the texts of all views) of the toybox's dream."""
    frozen = task.objective.load(task.prior, Prompt(benchmark.PROMPT))
    prior = torch_priors.toybox_prior(task.prior, frozen.params, frozen.embedded)
    texts = frozen.embedded.texts
    return prior, (torch_priors.as_torch(texts.tokens), torch_priors.as_torch(texts.mask))


def stable_diffusion_side(task: Dream):
    """The same of Stable Diffusion 1.5, by diffusers and with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    cross, down, up = "CrossAttnDownBlock2D", "DownEncoderBlock2D", "UpDecoderBlock2D"
    widths = (128, 256, 512, 512)
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=(cross, cross, cross, "DownBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=(down,) * 4,
        up_block_types=(up,) * 4,
    )
    tokens, mask = torch.randn(4, 77, 768), torch.ones(4, 77, dtype=torch.bool)
    alpha_bar = task.prior.schedule.alpha_bar
    prior = torch_priors.stable_diffusion_prior(unet, vae, tokens[:1], alpha_bar, "eps")
    return prior, (tokens, mask)


SIDES = {"toybox": toybox_side, "sd15": stable_diffusion_side}


def torch_calls(task: Dream, prior, texts) -> dict[str, Callable]:
    """What rows of `dream_programs` are in PyTorch, by the ends of their names."""
    height, width, channels = task.prior.shape
    shape, views = (channels, height, width), task.batch_views
    size = task.phases[-1].size

    def encode():
        rgb = torch.rand(views, 3, size, size, requires_grad=True)
        prior.encode(rgb, torch.randn(views, *shape)).sum().backward()

    def predict():
        count = 2 * views * task.objective.draws
        t, rows = torch.full((count,), 500), torch.arange(count) % len(texts[0])
        with torch.no_grad():
            prior.predict(torch.randn(count, *shape), t, texts[0][rows], texts[1][rows])

    calls = {" and back": encode, f" of {height} x {width}": predict}
    rate = float(task.optimizer.rate(task.steps)(0))
    for phase in task.phases:
        # Without chunks of rays PyTorch's step needs 20 GB at 128 pixels.
        if phase.cheap or phase.size > 64:
            continue
        nets = torch_dream.make_nets(task)
        adam = torch_dream.make_adam(task, nets)

        def step(phase=phase, nets=nets, adam=adam):
            shot = torch_dream.draw_shot(task, phase, texts, prior, shape, 0)
            torch_dream.take_step(task, phase, nets, adam, [rate], prior, shot, 0)

        look = "shaded" if phase.lit else "in albedo"
        calls[f"{phase.size} x {phase.size}, {look}"] = step
    return calls


def measured(name: str, task: Dream, repeats: int) -> Iterator[tuple[Row, float | None]]:
    """(our row, PyTorch's seconds where it has the like) of each program that fits into memory."""
    side, calls = SIDES.get(name), {}
    if side is not None:
        cpu_task = runnable(task)
        calls = torch_calls(cpu_task, *side(cpu_task))
    for program in dream_programs(name, task):
        row = measure(program, repeats)
        gc.collect()
        if not isinstance(row, Row):
            print(f"{program.name} needs {row / 2**30:.1f} GiB of memory: left out", flush=True)
            continue
        ends = [end for end in calls if program.name.endswith(end) and "rays" not in program.name]
        seconds = timed(calls[ends[0]], (), repeats, goes_on=False) if ends else None
        gc.collect()
        other = f", PyTorch {seconds:.4g} s" if seconds else ""
        print(f"{row.name}: {row.seconds:.4g} s{other}", flush=True)
        yield row, seconds


def main() -> None:
    """Time both and print the table."""
    if jax.default_backend() != "cpu":
        sys.exit("PyTorch is compared with on the CPU alone: set JAX_PLATFORMS=cpu")
    try:
        task: Benchmark = override(load_config("benchmark"), sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
    ceilings = benchmark.measure_ceilings(task.matmul, task.copy, task.repeats)
    found = []
    for name in ("toybox", "sd15", "tpu_v4"):
        dream = getattr(task, name)
        if dream is not None:
            found += measured(name, dream, task.repeats)
    training = measure(benchmark.training_program(task.batch_size), task.repeats)
    found += [(training, None)] if isinstance(training, Row) else []
    print("\n" + benchmark.table([row for row, _ in found], ceilings))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads:\n")
    print("| what | dreamjax | PyTorch | our speed over its |\n|---|---|---|---|")
    for row, seconds in found:
        if seconds:
            ours, theirs = benchmark.clock(row.seconds), benchmark.clock(seconds)
            print(f"| {row.name} | {ours} | {theirs} | {seconds / row.seconds:.2f} |")


if __name__ == "__main__":
    main()
