"""Text to 3D with Stable Diffusion 2.1-base (eps at 512) or 2.1 (v at 768) on one GPU.

    python -m dreamjax.main --config=configs/sd21.py \
        --config.weights=FOLDER_OR_REPOSITORY_OF_2.1_BASE \
        --config.prompt="a corgi wearing a beret, DSLR photo" --workdir=runs/corgi

As `configs/sd15.py`, which see: everything that differs between the models is in their own files.
The larger text encoder takes 0.9 GB more; at 768 pixels there are 2.25 times as many latents and
pixels to work on, and attention among the latents is 5 times the work.
"""

import importlib.util
from pathlib import Path

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    path = Path(__file__).with_name("sd15.py")
    spec = importlib.util.spec_from_file_location("dreamjax_config_sd15", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
