"""Text to 3D with Stable Diffusion 2.1-base (eps at 512) or 2.1 (v at 768) on one GPU.

    python -m dreamjax.main --config=configs/sd21.py \
        --config.prior.weights=FOLDER_OR_REPOSITORY_OF_2.1_BASE \
        --config.prompt="a corgi wearing a beret, DSLR photo" --workdir=runs/corgi

As `configs/sd15.py`, which see: everything that differs between the models is in their own files.
Figures are had as those: XLA's plan and count of the compiled step on a CPU, no GPU having run it.

Memory: 2.1-base about 12 GiB, 4.8 of parameters (its text encoder is larger) and 7.4 of buffers;
2.1 at 768 pixels about 24 GiB, with 18.7 of buffers, much of it attention's, which
--config.prior.fused=True does not keep. Time: a step of 2.1-base is 4.7 TFLOP as with 1.5, so
10,000 steps are an hour at 13 TFLOP/s; at 768 it is 11.1 TFLOP, 2.4 times as much.
"""

from dreamjax.main import load_config
from dreamjax.tasks.dream import Dream


def get_config() -> Dream:
    return load_config("sd15")
