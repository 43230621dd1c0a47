"""What a device does with dreamjax, as one Markdown file: see scripts/check_device.

Each part is a process of its own with so many seconds; what goes wrong in one is written down and
costs the others nothing.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Tests of arithmetic, gradients and randomness; those of files and texts say nothing of a device.
TESTS = (
    "tests/diffusion/test_process.py",
    "tests/diffusion/test_schedule.py",
    "tests/scene/test_encoding.py",
    "tests/scene/test_rays.py",
    "tests/scene/test_render.py",
    "tests/scene/test_shading.py",
    "tests/nets/test_unet.py",
    "tests/distill/test_sds.py",
    "tests/training/test_optimizer.py",
)
PROMPT = "a red mushroom with a white stem"


def run(title: str, args: list[str], seconds: float, **environ: str) -> tuple[str, str]:
    """(a line with status and seconds, all output) of a Python command that is cut off in time."""
    print(f"{title} (at most {seconds:.0f} s) ...", flush=True)
    began = time.monotonic()
    command = [sys.executable, *args]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        )
        status, out = f"exit status {done.returncode}", done.stdout + done.stderr
    except subprocess.TimeoutExpired as cut:
        parts = [part or b"" for part in (cut.stdout, cut.stderr)]
        status, out = "cut off", b"".join(map(bytes, parts)).decode(errors="replace")
    line = f"{status} after {time.monotonic() - began:.0f} s"
    print(f"  {line}", flush=True)
    return line, out


def last_lines(text: str, count: int = 12) -> str:
    """The end of a text, as a block of Markdown."""
    return "\n".join(["```", *text.strip().splitlines()[-count:], "```"])


def describe_device() -> str:
    """The machine, as lines of a list."""
    import jax
    import jaxlib

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    memory = f", {stats['bytes_limit'] / 2**30:.0f} GiB" if "bytes_limit" in stats else ""
    return (
        f"- device: {jax.device_count()} x {device.device_kind} ({device.platform}{memory}), "
        f"{os.cpu_count()} CPU cores\n"
        f"- date: {time.strftime('%Y-%m-%d')}; jax {jax.__version__}, jaxlib {jaxlib.__version__}"
    )


def nets():
    """(name, function of (params, x), params, x) of each network that is compared, by dtype."""
    import jax
    import jax.numpy as jnp

    from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig
    from dreamjax.nets.stable_diffusion.vae import AutoencoderKL, VAEConfig
    from dreamjax.priors.toybox import Toybox

    def shipped(dtype):
        prior = Toybox(dtype=dtype)
        params = prior.load()
        text = prior.net.embed_texts(params, [PROMPT] * 2)
        x = jax.random.normal(jax.random.key(1), (2, *prior.shape))
        return lambda p, x: prior.predict(p, x, jnp.array([300, 700]), text), params, x

    def unet(dtype):
        config = SDUNetConfig(
            sample_size=16,
            block_out_channels=(32, 64, 64, 64),
            layers_per_block=1,
            cross_attention_dim=64,
        )
        net = SDUNet(_with_dtype(config, dtype))
        x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))
        t, text = jnp.array([300, 700]), jax.random.normal(jax.random.key(2), (2, 77, 64))
        params = _random_params(net, x, t, text)
        return lambda p, x: net.apply(p, x, t, text), params, x

    def encoder(dtype):
        net = AutoencoderKL(
            _with_dtype(VAEConfig(block_out_channels=(32, 64), layers_per_block=1), dtype)
        )
        x = jax.random.uniform(jax.random.key(1), (1, 64, 64, 3), minval=-1.0)
        params = _random_params(net, x)
        return lambda p, x: net.apply(p, x, method="encode")[0], params, x

    made = {"shipped prior": shipped, "Stable Diffusion's UNet": unet, "its encoder": encoder}
    return made.items()


def _random_params(net, *inputs):
    """Parameters of a network, none of them zero, without compiling its initialisation."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def drawn(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        return (values + (leaf.ndim == 1)).astype(np.float32)

    return jax.tree.map(drawn, jax.eval_shape(net.init, jax.random.key(0), *inputs))


def _with_dtype(config, dtype: str):
    import dataclasses

    return dataclasses.replace(config, dtype=dtype)


def parity() -> None:
    """Print a table of networks and their gradients on the device beside the CPU's in float32."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    print("| network | dtype | error | cosine | gradient's error | its cosine |")
    print("|" + "---|" * 6, flush=True)
    for name, make in nets():
        truth = None
        for dtype in ("float32", "bfloat16", "float16"):

            def both(place, dtype, make=make):
                with jax.default_device(cpu):  # random numbers round differently elsewhere
                    function, params, x = make(dtype)

                def loss(x, params):
                    out = function(params, x).astype(jnp.float32)
                    return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

                with jax.default_device(place):
                    args = jax.device_put((x, params), place)
                    (_, out), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(*args)
                    return np.asarray(out, np.float64), np.asarray(grad, np.float64)

            if truth is None:
                truth = both(cpu, "float32")
            numbers = []
            for got, wanted in zip(both(device, dtype), truth, strict=True):
                error = np.abs(got - wanted).max() / np.abs(wanted).max()
                cosine = (got * wanted).sum() / np.sqrt((got**2).sum() * (wanted**2).sum())
                numbers += [f"{error:.1e}", f"{cosine:.6f}"]
            print(f"| {name} | {dtype} | {' | '.join(numbers)} |", flush=True)


def main() -> None:
    """Run all parts and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the least of everything")
    parser.add_argument("--out", default="runs/check_device.md", help="the file")
    parser.add_argument("--part", choices=["device", "parity"], help="print one part alone")
    given = parser.parse_args()
    if given.part == "device":
        return print(describe_device())
    if given.part == "parity":
        return parity()
    small, began, me = given.small, time.monotonic(), str(Path(__file__))
    runs = ROOT / "runs" / f"check_device-{time.strftime('%Y%m%d-%H%M%S')}"
    _, device = run("device", [me, "--part=device"], 60)
    on_cpu = "(cpu" in device
    text = ["## A device, by `scripts/check_device`", "", device.strip(), ""]

    line, out = run("networks beside the CPU's", [me, "--part=parity"], 90, JAX_PLATFORMS="")
    rows = [row for row in out.splitlines() if row.startswith("|")]
    text += [
        "Networks beside the CPU's in float32, random inputs; errors are of the largest value.",
        "",
    ]
    text += [*rows, "", *([] if "status 0" in line else [line, last_lines(out)]), ""]

    # The suite takes the CPU unless it is told otherwise.
    platforms = "cpu" if on_cpu else "tpu,cpu" if "(tpu" in device else "cuda,cpu"
    tests = ["-m", "pytest", "-n", "0", "-q", *(TESTS[:2] if small else TESTS)]
    line, out = run("tests", tests, 120, JAX_PLATFORMS=platforms)
    failed = re.findall(r"^(?:FAILED|ERROR) .*", out, re.M)
    text += [
        f"Tests of arithmetic on the device: {line}",
        "",
        last_lines("\n".join(failed) or out, 20),
    ]

    no_large = ["--config.sd15=none", "--config.tpu_v4=none"]
    flags = ["--config.batch_size=256", "--config.matmul=8192", "--config.copy=1024"]
    flags = no_large if on_cpu else flags
    if small:
        flags = [*no_large, "--config.repeats=1", "--config.batch_size=2", "--config.matmul=256"]
    bench = ["-m", "dreamjax.main", "--config=benchmark", f"--workdir={runs / 'benchmark'}", *flags]
    line, out = run("benchmark", bench, 130)
    table = runs / "benchmark" / "benchmark.md"
    text += ["", f"Speed (`{' '.join(bench[2:])}`): {line}".replace(str(ROOT) + "/", ""), ""]
    text += [table.read_text("utf-8") if table.exists() else last_lines(out)]

    steps = ["--config.steps=6", "--config.exports=glb,views"] if small else []
    args = ["-m", "dreamjax.main", "dream", *PROMPT.split(), f"--workdir={runs / 'dream'}", *steps]
    line, out = run("a dream", args, 80 if not small else 300)
    text += ["", f"`dreamjax dream {PROMPT} {' '.join(steps)}`: {line}", "", last_lines(out, 4), ""]
    text += [f"All of it took {(time.monotonic() - began) / 60:.1f} minutes."]
    out_file = ROOT / given.out
    out_file.parent.mkdir(parents=True, exist_ok=True)
    out_file.write_text("\n".join(text) + "\n", "utf-8")
    print(f"wrote {out_file}; the dream and the benchmark are in {runs}")


if __name__ == "__main__":
    main()
