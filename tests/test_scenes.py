"""Many scenes at once on eight fake devices: each is the run that it would be alone."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax import many
from dreamjax.clock import Ramp
from dreamjax.distill.facing import Facing
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.errors import UserError
from dreamjax.export.surface import Surface
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Orientation
from dreamjax.scene.render import Renderer
from dreamjax.settings import Positive, settings
from dreamjax.tasks.dream import Dream, load
from dreamjax.training.metrics import read_history
from dreamjax.training.optimizer import skip_nonfinite

from .tiny import write_tiny_prior

ROOT = Path(__file__).resolve().parents[1]
GOOD = [f"a {color} ball" for color in "red blue green yellow white black purple pink".split()]
PROMPTS = ["a red dragon", GOOD[0], "an orange ball", *GOOD[1:]]  # unknown, good, poisoned, good


@settings
class Sgd:
    """Plain gradient descent, which does not hide a wrong scale of the gradient as Adam does."""

    learning_rate: Positive = 1e-4  # of all steps

    def make(self, total_steps):
        """Return it, skipping steps that are not finite."""
        return skip_nonfinite(optax.sgd(self.learning_rate))


@settings
class Poisoned(Sds):
    """An objective that has no finite loss for orange things."""

    def load(self, prior, prompt, params=None):
        """Orange things are not a number."""
        LOADED.append(params)
        frozen = super().load(prior, prompt, params)
        factor = np.float32(np.nan if "orange" in prompt.text else 1.0)

        def spoilt(x):
            return x * factor if jnp.issubdtype(x.dtype, jnp.floating) else x

        return frozen._replace(embedded=jax.tree.map(spoilt, frozen.embedded))


LOADED: list = []


def make_task(folder: Path, **changes) -> Dream:
    weights = folder / "tiny.safetensors"
    if not weights.exists():
        write_tiny_prior(weights, size=16, spread=0.2)
    task = Dream(
        prompts=str(folder / "prompts.txt"),
        steps=24,
        batch_views=2,
        prior=Toybox(weights=str(weights)),
        objective=Poisoned(guidance_scale=4.0),
        phases=(Phase(until=0.5, size=8, lit=False), Phase(size=8)),
        facing=Facing(after=0.5, draws=1),
        field=Mlp(width=8, blocks=1),
        renderer=Renderer(samples=8, normal_samples=2),
        penalties=(Orientation(Ramp(0.1, 1.0)),),
        optimizer=Sgd(),
        surface=Surface(resolution=16),
        exports=(),
        views_every=0,
        log_every=1,
    )
    return dataclasses.replace(task, **changes)


def check_same(one: Path, other: Path) -> None:
    """The first steps are equal to round-off, and all that follows nearly."""
    a, b = read_history(one), read_history(other)
    assert len(a) == len(b) == 24
    for name in a[0].keys() - {"seconds", "step"}:
        first, second = ([row[name] for row in rows] for rows in (a, b))
        np.testing.assert_allclose(first[:4], second[:4], rtol=2e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(first, second, rtol=1e-2, atol=1e-4, err_msg=name)
    states = load(one).state, load(other).state
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def check_scenes(folder: Path, each: int) -> None:
    """Ten prompts, two of which fail, over eight devices; then three of them alone."""
    assert jax.device_count() == 8
    task = make_task(folder, scenes_per_device=each)
    Path(task.prompts).write_text("\n".join(PROMPTS) + "\n")
    home = folder / "together"
    with pytest.raises(UserError, match="2 of 10 prompts failed"):
        task.run(home)
    assert len(LOADED) == 10 and all(params is LOADED[0] is not None for params in LOADED)
    done = {p.name for p in home.iterdir() if (p / "manifest.json").exists()}
    assert done == {f"{n:03d}-{many.slug(p)}" for n, p in enumerate(PROMPTS, 1) if p in GOOD}
    rows = read_history(home / "003-an-orange-ball")
    assert [row["skipped_in_row"] for row in rows] == list(range(1, 20))
    losses = {read_history(p)[0]["loss"] for p in home.glob("*-ball") if p.name in done}
    assert len(losses) == 8  # each heard its own prompt
    for prompt in (GOOD[0], GOOD[-1]):  # one of the first, and one that took a place that was left
        alone = dataclasses.replace(task, prompt=prompt, prompts="")
        alone.run(folder / many.slug(prompt))
        place = home / f"{PROMPTS.index(prompt) + 1:03d}-{many.slug(prompt)}"
        check_same(place, folder / many.slug(prompt))


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 2])
def test_scenes_are_what_they_are_alone(tmp_path, each):
    environment = dict(
        os.environ,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        PYTHONPATH=str(ROOT),
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="true",
    )
    command = [sys.executable, "-m", "tests.test_scenes", str(tmp_path), str(each)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


if __name__ == "__main__":
    check_scenes(Path(sys.argv[1]), int(sys.argv[2]))
