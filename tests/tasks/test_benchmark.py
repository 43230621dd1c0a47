"""The benchmark's arithmetic; its timings are the machine's own."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dreamjax.config import replaced
from dreamjax.main import load_config
from dreamjax.nets.stable_diffusion.unet import SDUNetConfig
from dreamjax.nets.text import Text
from dreamjax.nets.unet import UNet, UNetConfig
from dreamjax.tasks import benchmark
from dreamjax.tasks.benchmark import (
    Ceilings,
    Program,
    Row,
    UntrainedStableDiffusion,
    count_operations,
    measure,
    measure_all,
    measure_ceilings,
    runnable,
    table,
)


def test_operations_of_a_matrix_product():
    a = jnp.ones((64, 32))
    assert count_operations(lambda x: x @ x.T, a) == 2 * 64 * 32 * 64


def test_a_loop_counts_as_often_as_it_goes_round():
    """XLA counts its body once; and of two branches the one with more work counts."""
    a, once = jnp.ones((16, 16)), 2 * 16**3

    def loop(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, length=7)[0]

    assert count_operations(jax.jit(loop), a) == 7 * once
    assert count_operations(lambda a: jax.lax.map(lambda row: a @ row, a), a) == once

    def either(a):
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ x, lambda x: x, a)

    assert count_operations(either, a) == once
    assert count_operations(jax.checkpoint(lambda x: jnp.sin(x @ x)), a) == once


def test_operations_of_convolutions_and_their_gradient():
    """Zeros around a picture, or between strides on the way back, need no products."""
    x, kernel = jnp.ones((2, 16, 16, 3)), jnp.ones((3, 3, 3, 8))

    def down(x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims)

    xla = jax.jit(down).lower(x).cost_analysis()["flops"]
    once = count_operations(down, x)
    assert once == pytest.approx(xla, rel=1e-6) and 0.8 < once / (2 * 1024 * 27) < 1.0  # padding
    # The way back to the input takes the same, plus the way there.
    assert count_operations(jax.grad(lambda x: jnp.sum(down(x) ** 2)), x) == 2 * once


def test_operations_of_a_network_are_xlas():
    """Of a network without loops XLA's own count says the same, with norms and the like on top."""
    net = UNet(UNetConfig(channels=32, text_dim=16))
    x, t = jnp.ones((2, 16, 16, 3)), jnp.ones(2)
    text = Text(jnp.ones((2, 4, 16)), jnp.ones((2, 4), bool))
    params = jax.eval_shape(net.init, jax.random.key(0), x, t, text)
    ours = count_operations(net.apply, params, x, t, text)
    xla = jax.jit(net.apply).lower(params, x, t, text).cost_analysis()["flops"]
    assert ours < xla < 1.25 * ours


def test_what_is_possible_is_the_larger_of_two_bounds():
    ceilings = Ceilings({"float32": 1e9}, 1e8)
    products = Row("step", "float32", 4.0, 2e9, 1e7, 0.0)  # 2 s of products, 0.1 s of copies
    copies = Row("rays", "float32", 4.0, 1e8, 1e8, 0.0)  # 0.1 s of products, 1 s of copies
    assert ceilings.share(products) == (0.5, "products")
    assert ceilings.share(copies) == (0.25, "copies")
    text = table([products, copies], ceilings, ["sd15: left out"])
    assert "| step | 4 s | 2 | 0.5 | 0 MiB | 50 % (products) |" in text
    assert "| rays | 4 s | 0.1 | 0.025 | 0 MiB | 25 % (copies) |" in text
    assert "\n- sd15: left out\n" in text and "1 GFLOP/s in float32; copies 0.1 GB/s" in text


def test_a_program_is_timed_without_its_first_call(monkeypatch):
    """Random arguments stand for shapes; a state goes on; a dispatch of many steps is divided."""

    def step(state, x):
        return state + jnp.sum(x @ x), {}

    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    program = Program("step", "float32", step, (jnp.zeros(()), x), steps=10, goes_on=True)
    ticks = iter([0.0, 100.0, 100.0, 102.0, 102.0, 105.0, 105.0, 106.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(benchmark, "LONGEST", 1e9)
    row = measure(program, repeats=3)
    assert (row.seconds, row.operations) == (0.2, 2 * 32**3)
    assert row.traffic == pytest.approx(4 * (32 * 32 + 2), abs=64) and row.memory >= 4 * 32 * 32


def test_what_does_not_fit_is_left_out_in_one_line(monkeypatch):
    monkeypatch.setattr(benchmark, "available", lambda: 2.0**20)
    small, large = (jax.ShapeDtypeStruct((n, n), jnp.float32) for n in (8, 2048))
    programs = [Program(f"{x.shape}", "float32", jnp.sin, (x,)) for x in (small, large, large)]
    notes = []
    rows, line = measure_all(iter(programs), 1, notes.append)
    assert [row.name for row in rows] == ["(8, 8)"] and len(notes) == 3
    assert line.startswith("2 programs of up to 0.0 GiB are left out") and "\n" not in line


def test_ceilings():
    ceilings = measure_ceilings(64, 1, repeats=2)
    assert ceilings.products["float32"] > 1e6 and ceilings.copy > 1e6


@pytest.mark.slow
def test_stable_diffusion_without_weights_is_of_the_published_size():
    task = runnable(load_config("sd15"))
    prior = task.prior
    assert isinstance(prior, UntrainedStableDiffusion) and prior.dtype == "float32"
    assert task.steps_per_dispatch == 1 and prior.interpolate_views and prior.shape == (64, 64, 4)
    assert prior.net.unet == SDUNetConfig(cross_attention_dim=768, remat=True)
    shapes = prior.load()
    assert sum(x.size for x in jax.tree.leaves(shapes["unet"])) == 859_520_964
    assert prior.embed(shapes, None).texts.tokens.shape == (4, 77, 768)


def script(folder, *args):
    """`scripts/benchmark` with a Python that only notes what it is called with, and these notes."""
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    shutil.copytree(scripts, folder / "scripts", dirs_exist_ok=True)
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/bash\necho "$@" >>{folder}/calls\n')
    python.chmod(0o755)
    done = subprocess.run([folder / "scripts/benchmark", *args], capture_output=True, text=True)
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    ("args", "extra", "called"),
    [
        ([], ".", "-m dreamjax.main --config=benchmark --workdir=runs/benchmark"),
        (["--against", "torch", "--config.repeats=2"], ".[parity]", "--config.repeats=2"),
        (["--against=torch"], ".[parity]", "scripts/against_torch.py"),
    ],
)
def test_the_script_compares_where_it_is_asked_to(tmp_path, args, extra, called):
    done, (install, run) = script(tmp_path, *args)
    assert done.returncode == 0, done.stderr
    assert f"--editable {extra} " in install and run.endswith(called)
    assert run.startswith("scripts/against_torch.py" if args else "-m dreamjax.main")


@pytest.mark.parametrize("args", [["--against"], ["--against", "jax"], ["--against=jax"]])
def test_the_script_knows_no_other_library(tmp_path, args):
    done, calls = script(tmp_path, *args)
    assert done.returncode == 2 and not calls and "there is torch" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_everything_is_timed(tmp_path, quick_compilation):
    """The smallest of everything: what matters is that what the tasks run is what is timed."""
    small = {"repeats": 1, "matmul": 64, "copy": 1, "batch_size": 2, "sd15": None, "tpu_v4": None}
    dream = {"toybox.batch_views": 2, "toybox.phases.0.size": 8, "toybox.phases.1.size": 8}
    began = time.time()
    replaced(load_config("benchmark"), small | dream).run(tmp_path / "out")
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "| toybox: step, 2 views of 8 x 8, shaded |" in text
    assert "| toybox: step, 2 views of 8 x 8, in albedo |" in text
    rows = re.findall(
        r"^\| [^|]+ \| ([0-9.]+) (s|ms|µs) \|.*\((?:products|copies)\) \|$", text, re.M
    )
    assert len(rows) == 8 and all(float(number) > 0 for number, _ in rows)
    assert time.time() - began < 600
