"""Scores of the shipped prior and of finished dreams on the 20 fixed prompts.

    python -m dreamjax.main --config=toybox_evaluate --workdir=runs/evaluate
    python -m dreamjax.main --config=toybox_evaluate --workdir=runs/evaluate_dreams \
        --config.dreams.folder=runs/dreams --config.dreams.run_missing=true

The first scores the prior's samples in a few minutes. The second also makes those dreams of the
20 prompts that `runs/dreams` does not hold yet (up to ten minutes each, on two cores) and scores
all in there. `--config.dream.KEY=VALUE` changes how they are made.
"""

from dreamjax.main import load_config
from dreamjax.tasks.evaluate import Evaluate


def get_config() -> Evaluate:
    return Evaluate(dream=load_config("toybox"))
