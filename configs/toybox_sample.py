"""Pictures from the prior that ships with the package, by text (half a minute on two cores).

    python -m dreamjax.main --config=configs/toybox_sample.py --workdir=runs/pictures \
        --config.prompts='("a red mug, side view", "a house")'

--config.weights=runs/toybox_prior/prior.safetensors draws from one of your own.
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
            prompts=("a red mushroom with a white stem, side view", "a purple chair, front view"),
            negative_prompt="",
            per_prompt=4,
            chunk=16,
            image="",  # a file to start from, noised to the fraction `start` of T
            mask="",  # or, with this, to paint anew where it is black
            start=1.0,
            sampler=dict(
                sampler="ddim",
                steps="30",  # or sections of the chain, as "ddim50" or "10,15,20"
                eta=0.0,
                guidance_scale=4.0,
                rescale=0.0,
                classifier_scale=0.0,
            ),
        )
    )
