"""How fast this machine trains, samples and dreams: nine minutes on two CPU cores with compilation.

    scripts/benchmark
    python -m dreamjax.main --config=configs/benchmark.py --workdir=runs/benchmark

On an accelerator: --config.unet_dtype=bfloat16 --config.batch_size=256 --config.matmul=8192
"""

import importlib.util
from pathlib import Path

from ml_collections import config_dict


def _config(name: str) -> config_dict.ConfigDict:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    dream = _config("toybox").to_dict()
    names = (
        "field",
        "encoding",
        "contrast",
        "render",
        "camera",
        "light",
        "shading",
        "loss",
        "mlp_background",
    )
    return config_dict.ConfigDict(
        dict(
            task="benchmark",
            repeats=5,
            matmul=2048,
            batch_size=32,
            views=4,
            render_size=32,
            unet_dtype="float32",
            scene={name: dream[name] for name in names},
            digits=_config("ddpm_digits").to_dict(),
        )
    )
