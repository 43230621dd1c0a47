"""`sds_step`: the raw gradient does not depend on how many devices share the views."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from dreamjax.distill.sds import SdsConfig, make_sds, sds_params
from dreamjax.distill.step import StepConfig, init_scene, make_sds_step
from dreamjax.diffusion.schedule import cosine
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.scene.field import FieldConfig
from dreamjax.scene.render import RenderConfig
from dreamjax.training import parallel
import optax

prompt, words = "ball", ("front", "side", "back", "overhead")
texts = tuple(f"{prompt}, {w} view" for w in words) + ("",)
prior = AnalyticPrior(cosine(100), 8, texts)
rng = np.random.default_rng(0)
params = AnalyticParams(
    jnp.asarray(rng.uniform(-1, 1, (5, 8, 8, 3)), jnp.float32), jnp.full((8, 8, 3), 0.2)
)
objective = make_sds(prior, SdsConfig(guidance_scale=3.0), 10)
given = sds_params(prior, params, prompt)
scene = StepConfig(FieldConfig(width=16, blocks=1), render=RenderConfig(samples=8,
normal_samples=2))

def update(grads, loss, params, opt_state):
    return grads, opt_state, {}      # the new "parameters" are the raw gradient

state = init_scene(jax.random.key(0), scene, optax.identity())
step = make_sds_step(objective, scene, update, parallel.mean, 8, True)
raw = {}
for count in (1, 8):
    devices = jax.devices()[:count]
    first, objective_params, key = parallel.replicate((state, given, jax.random.key(7)), devices)
    index = parallel.split_indices(8, devices)
    after, metrics = parallel.pmap(step, devices, shared=2)(first, index, objective_params, key)
    raw[count] = jax.tree.leaves(jax.device_get(parallel.first_copy(after.params)))
    print(count, float(parallel.first_copy(metrics)["loss"]))
scale = max(np.abs(g).max() for g in raw[1])
assert scale > 1e-3, scale
for one, many in zip(raw[1], raw[8]):
    np.testing.assert_allclose(many, one, rtol=2e-3, atol=2e-5 * scale)
print("agree")
"""


@pytest.mark.slow
def test_eight_devices_give_one_devices_raw_gradient():
    env = dict(
        os.environ,
        PYTHONPATH=str(Path(__file__).resolve().parents[2]),
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        JAX_PLATFORMS="cpu",
    )
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("agree\n"), done.stderr[-2000:]
