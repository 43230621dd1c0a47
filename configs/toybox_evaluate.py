"""Scores of the shipped prior and of finished dreams on the 20 fixed prompts.

    python -m dreamjax.main --config=configs/toybox_evaluate.py --workdir=runs/evaluate
    python -m dreamjax.main --config=configs/toybox_evaluate.py --workdir=runs/evaluate_dreams \
        --config.eval.dreams=runs/dreams --config.eval.run_missing=true

The first scores the prior's samples in a few minutes; the second also makes those dreams of the
20 prompts that `runs/dreams` does not hold yet (up to ten minutes each, on two cores) and scores
all in there. `--config.dream.KEY=VALUE` changes how they are made.
"""

import importlib.util
from pathlib import Path

from ml_collections import config_dict


def _dream() -> config_dict.ConfigDict:
    path = Path(__file__).with_name("toybox.py")
    spec = importlib.util.spec_from_file_location("dreamjax_config_toybox", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    del config.prompts  # they are fixed
    return config


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    config = config_dict.ConfigDict()
    config.task = "evaluate"
    config.seed = 0
    config.weights = ""
    config.probe = ""
    config.samples = config_dict.ConfigDict(
        dict(per_view=4, random=256, guidance_scale=4.0, steps=30)
    )
    config.eval = config_dict.ConfigDict(
        dict(dreams="", run_missing=False, elevation=17.5, size=64, truths=4, silhouettes=32)
    )
    config.dream = _dream()
    return config
