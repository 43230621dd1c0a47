"""How fast this device dreams and trains, part by part, beside what is possible on it.

    scripts/benchmark
    python -m dreamjax.main --config=benchmark --workdir=runs/benchmark

`scripts/benchmark --against torch` times the same steps in PyTorch too. A dream is left out by
--config.sd15=none; random weights stand for those that are not given. On an accelerator:
--config.batch_size=256 --config.matmul=8192 --config.copy=1024
"""

from dreamjax.main import load_config
from dreamjax.tasks.benchmark import Benchmark


def get_config() -> Benchmark:
    return Benchmark(
        toybox=load_config("toybox"), sd15=load_config("sd15"), tpu_v4=load_config("tpu_v4")
    )
