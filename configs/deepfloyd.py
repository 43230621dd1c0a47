"""Text to 3D with DeepFloyd IF-I, M, L or XL: pixels of 64 x 64, no autoencoder, T5's reading.

    python -m dreamjax.main --config=configs/deepfloyd.py \
        --config.prior.weights=DeepFloyd/IF-I-M-v1.0 \
        --config.prompt="a corgi wearing a beret, DSLR photo" --workdir=runs/corgi

`prior.weights` is a folder in the layout of diffusers, or a repository id that is fetched once,
T5's 9 GB with it; the model's licence must have been accepted and a token be at hand. On a TPU take
--config.prior.dtype=bfloat16. The rest is as `configs/sd15.py` has it. Guidance is threestudio's
20, in the form (1 + w). What is verified, and what is not: docs/priors.md.
"""

import dataclasses

from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.main import load_config
from dreamjax.priors.deepfloyd import Deepfloyd
from dreamjax.tasks.dream import Dream


def get_config() -> Dream:
    return dataclasses.replace(
        load_config("sd15"),
        prior=Deepfloyd(dtype="float16", interpolate_views=True),
        objective=Sds(guidance_scale=21.0),
        phases=(Phase(until=0.1, size=64, lit=False), Phase(size=64)),
    )
