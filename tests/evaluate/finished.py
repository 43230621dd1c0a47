"""Finished runs without the time they take."""

import json

import jax
import jax.numpy as jnp

from dreamjax.config import write_atomic
from dreamjax.distill.step import init_scene
from dreamjax.tasks import dream
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.optimizer import make_optimizer

DREAM = {
    "task": "dream",
    "prompt": "a red mug",
    "steps": 3,
    "field": {"width": 8, "blocks": 1},
    "render": {"samples": 8, "normal_samples": 2},
}


def finish(run_dir, settings, step=None):
    """Write what a finished run leaves, with an untrained field."""
    run_dir.mkdir(parents=True)
    write_atomic(run_dir / "config.json", json.dumps(settings))
    c = dream.build(dream.DreamConfig, {k: v for k, v in settings.items() if k != "task"})
    tx = make_optimizer(c.optimizer, c.steps)
    state = init_scene(jax.random.key(1), dream.step_config(c), tx)
    step = c.steps if step is None else step
    Checkpoints(run_dir / "checkpoints").save(step, state._replace(step=jnp.int32(step)))
    return state.params
