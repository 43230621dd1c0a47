"""Pictures from Stable Diffusion, by text.

    python -m dreamjax.main --config=sd_sample --workdir=runs/pictures \
        --config.prior.weights=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --config.prompts='("a corgi wearing a beret", "a zoomed out DSLR photo of a peacock")'

`prior.weights` is a folder in the layout of diffusers or a repository id, which is fetched once.
`chunk` pictures are drawn at a time: raise it where memory allows. On a GPU take
--config.prior.dtype=float16, on a TPU bfloat16. To start from a picture (SDEdit):
--config.image=FILE --config.start=0.6; to paint a part of it anew, --config.image=FILE
--config.mask=FILE.
"""

from dreamjax.priors.sampling import Sampler
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.tasks.sample import Sample


def get_config() -> Sample:
    return Sample(
        prior=StableDiffusion(cheap_encoder=False),
        prompts=("a red mushroom with a white stem",),
        per_prompt=2,
        chunk=1,
        sampler=Sampler(method="dpm_solver", steps=25, guidance_scale=7.5),
    )
