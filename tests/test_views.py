"""Views of one scene over eight fake devices: the raw gradient is that of one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dreamjax.clock import Ramp
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase, Trained, init_state, make_sds_step
from dreamjax.priors.base import Prompt
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Opacity, Orientation
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream
from dreamjax.training import parallel
from dreamjax.training.optimizer import Adam

from .tiny import write_tiny_prior

ROOT = Path(__file__).resolve().parents[1]
VIEWS, RATE = 8, 1e-4


def descend(grads, loss, scene, objective):
    """Plain gradient descent, with the gradient among the metrics."""
    params = jax.tree.map(lambda p, g: p - RATE * g, scene.params, grads[0])
    return Trained(params, scene.opt_state), objective, {"total": loss, "grads": grads[0]}


def check(prior, prompt: str) -> None:
    """Two steps over eight devices and over one, each with all eight views."""
    assert jax.device_count() == 8
    task = Dream(
        prior=prior,
        objective=Sds(guidance_scale=4.0),
        batch_views=VIEWS,
        steps=10,
        field=Mlp(width=16, blocks=1),
        renderer=Renderer(samples=8, normal_samples=2),
        background=Learned(),
        penalties=(Orientation(Ramp(0.1, 1.0)), Opacity(Ramp(0.1, 0.1))),
    )
    tx, key = Adam().make(task.steps), jax.random.key(0)
    frozen = task.objective.load(prior, Prompt(prompt))
    step = make_sds_step(
        task, prior, task.objective, Phase(size=16), task.steps, descend, parallel.mean
    )
    found = []
    for devices in (parallel.devices_for(VIEWS), tuple(jax.devices()[:1])):
        index = parallel.split_indices(VIEWS, devices)
        assert index.shape == (len(devices), VIEWS // len(devices))
        state = init_state(key, task, {}, tx, tx)
        state, *shared = parallel.replicate((state, frozen, key), devices)
        program = parallel.pmap(step, devices, shared=2)
        state, first = program(state, index, *shared)
        state, second = program(state, index, *shared)
        found.append(jax.device_get((first, second, state.scene.params)))
    many, one = found
    assert not np.array_equal(many[0]["total"], many[1]["total"])
    moving = [np.any(g != 0) for g in jax.tree.leaves(many[1]["grads"])]
    assert sum(moving) > 0.8 * len(moving), moving
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * np.abs(b).max())


def run_on_eight(kind: str, folder: Path) -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    command = [sys.executable, "-m", "tests.test_views", kind, str(folder)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_the_toyboxs_prior(tmp_path):
    write_tiny_prior(tmp_path / "tiny.safetensors", spread=0.2)
    run_on_eight("toybox", tmp_path / "tiny.safetensors")


@pytest.mark.slow
def test_the_prior_that_ships(tmp_path):
    run_on_eight("toybox", Path())


@pytest.mark.slow
def test_a_tiny_stable_diffusion(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from .parity import tiny_sd

    tiny_sd.make(tmp_path, "1.x")
    run_on_eight("sd", tmp_path / "model")


if __name__ == "__main__":
    kind, path = sys.argv[1:]
    weights = "" if path == "." else path
    if kind == "sd":
        check(StableDiffusion(weights=weights), "red red")
    else:
        check(Toybox(weights=weights), "a red ball")
