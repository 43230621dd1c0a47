"""How fast this machine trains, samples and dreams: nine minutes on two CPU cores with compilation.

    scripts/benchmark
    python -m dreamjax.main --config=benchmark --workdir=runs/benchmark

On an accelerator: --config.prior.dtype=bfloat16 --config.batch_size=256 --config.matmul=8192
"""

from dreamjax.main import load_config
from dreamjax.tasks.benchmark import Benchmark


def get_config() -> Benchmark:
    return Benchmark(dream=load_config("toybox"), digits=load_config("ddpm_digits"))
