"""Scores the samples of a prior of named things: how often a judge finds what was asked for.

    python -m dreamjax.main --config=hundred_evaluate --workdir=runs/hundred_scores \
        --config.prior.weights=runs/hundred_prior/prior.safetensors \
        --config.judge.weights=runs/hundred_judge/judge.safetensors

Dreams are scored by `r_precision`, with the judge's file as `retrieval.clips`.
"""

from dreamjax.tasks.evaluate_objects import EvaluateObjects


def get_config() -> EvaluateObjects:
    return EvaluateObjects()
