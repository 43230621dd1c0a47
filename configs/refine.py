"""A finished dream made sharp: 512 x 512 pictures of it, its surface fixed or free.

    python -m dreamjax.main --config=refine --config.from_run=runs/a-red-mushroom \
        --workdir=runs/a-red-mushroom-512

`--config.fixed=false` trains the surface too. Prior and objective are the finished run's.
"""

from dreamjax.tasks.refine import Refine


def get_config() -> Refine:
    return Refine(steps=200, log_every=10, checkpoint_every=50)
