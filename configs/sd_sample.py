"""Pictures from Stable Diffusion, by text.

    python -m dreamjax.main --config=configs/sd_sample.py --workdir=runs/pictures \
        --config.weights=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --config.prompts='("a corgi wearing a beret", "a zoomed out DSLR photo of a peacock")'

`weights` is a folder in the layout of diffusers or a repository id, which is fetched once; without
it the prior that ships with the package is asked, which knows the toybox's words only. `chunk`
pictures are drawn at a time: raise it where memory allows. On a GPU or TPU take
--config.prior.dtype=bfloat16. To start from a picture (SDEdit): --config.image=FILE
--config.start=0.6; to paint a part of it anew, --config.image=FILE --config.mask=FILE.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    return config_dict.ConfigDict(
        dict(
            task="sample",
            seed=0,
            weights="",
            classifier="",
            prior=dict(dtype="float32", remat=False, fused=False),
            prompts=("a red mushroom with a white stem",),
            negative_prompt="",
            per_prompt=2,
            chunk=1,
            image="",
            mask="",
            start=1.0,
            sampler=dict(
                sampler="dpm_solver",
                steps="25",  # or sections of the chain, as "ddim50" or "10,15,20"
                eta=0.0,
                guidance_scale=7.5,
                rescale=0.0,
                classifier_scale=0.0,
            ),
        )
    )
