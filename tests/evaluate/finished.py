"""Finished runs without the time they take."""

import jax
import jax.numpy as jnp

from dreamjax.config import dumps
from dreamjax.distill.step import init_state
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.workdir import CONFIG_FILE, write_text

DREAM = Dream(
    prompt="a red mug",
    steps=3,
    field=Mlp(width=8, blocks=1),
    renderer=Renderer(samples=8, normal_samples=2),
)


def finish(run_dir, task, step=None):
    """Write what a finished run leaves, with an untrained field; returns its parameters."""
    write_text(run_dir / CONFIG_FILE, dumps(task))
    tx = task.optimizer.make(task.steps)
    state = jax.jit(lambda key: init_state(key, task, {}, tx, tx))(jax.random.key(1))
    step = task.steps if step is None else step
    Checkpoints(run_dir / "checkpoints").save(step, state._replace(step=jnp.int32(step)))
    return state.scene.params
