"""Pictures from the prior that ships with the package, by text (half a minute on two cores).

    python -m dreamjax.main --config=toybox_sample --workdir=runs/pictures \
        --config.prompts='("a red mug, side view", "a house")'

--config.prior.weights=runs/toybox_prior/prior.safetensors draws from one of your own.
"""

from dreamjax.priors.sampling import Sampler
from dreamjax.tasks.sample import Sample


def get_config() -> Sample:
    return Sample(
        prompts=("a red mushroom with a white stem, side view", "a purple chair, front view"),
        per_prompt=4,
        chunk=16,
        sampler=Sampler(steps=30, guidance_scale=4.0),
    )
