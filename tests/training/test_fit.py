"""The one loop around the training of networks, on a network of one matrix."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.errors import UserError
from dreamjax.settings import settings
from dreamjax.training.fit import Problem, Seen, Training, ahead, fit
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import Adam, skip_nonfinite

ROWS = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)


@settings
class Plain:
    """Gradient descent without anything, so that a wrong scale of the gradient shows."""

    rate: float = 0.1  # of the steps

    def make(self, total_steps):
        """The optimizer."""
        return skip_nonfinite(optax.sgd(self.rate))


def training(**changes):
    values = dict(steps=6, batch_size=8, log_every=1, checkpoint_every=2, eval_every=3, seed=4)
    return Training(**values | changes)


def loss(params, data, keys, memory):
    """A noisy quadratic; each example draws from its own key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    each = jnp.sum((data @ params["w"] - noise) ** 2, axis=-1)
    return Seen(jnp.mean(each), {"loss": jnp.mean(each)})


def init():
    return {"w": jnp.eye(3)}


def fetcher():
    return lambda step: ROWS[np.random.default_rng([7, step]).integers(len(ROWS), size=8)]


def run(workdir, problem=Problem(loss), **changes):  # noqa: B008
    options = {k: changes.pop(k) for k in ("save", "evaluate", "prepare", "data") if k in changes}
    options.setdefault("data", fetcher)
    workdir.mkdir(exist_ok=True)
    return fit(training(**changes), workdir, problem, init=init, **options)


def test_steps_are_gradient_descent_on_the_steps_own_batches(tmp_path):
    """Against plain autodiff, with the average's warm-up."""
    state = run(tmp_path, optimizer=Adam(learning_rate=0.03))
    params, average = init(), init()
    tx = optax.adam(0.03)
    opt_state = tx.init(params)
    base = jax.random.key(4)
    for step in range(6):
        keys = [jax.random.fold_in(jax.random.fold_in(base, step), i) for i in range(8)]
        batch = fetcher()(step)
        grads = jax.grad(lambda p, b=batch, k=keys: loss(p, b, jnp.stack(k), ()).loss)(params)
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        keep = (2 + step) / (11 + step)
        average = jax.tree.map(lambda a, p, k=keep: k * a + (1 - k) * p, average, params)
    assert int(state.step) == 6
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)
    np.testing.assert_allclose(state.ema["w"], average["w"], rtol=1e-5)


def test_several_steps_in_a_dispatch_are_the_same_steps(tmp_path):
    one = run(tmp_path / "one")
    three = run(tmp_path / "three", steps_per_dispatch=3)
    np.testing.assert_allclose(three.params["w"], one.params["w"], rtol=1e-5)


def test_a_stopped_run_ends_bit_identical(tmp_path, monkeypatch):
    straight = run(tmp_path / "straight")
    update = Progress.update

    def stop_at_3(self, step, metrics=None):
        update(self, step, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    monkeypatch.setattr(Progress, "update", update)

    def never(params):
        raise AssertionError("a run that goes on is not prepared again")

    resumed = run(tmp_path / "stopped", prepare=never)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_what_is_saved_and_measured_when(tmp_path, capsys):
    saved, measured = [], []

    def save(params):
        saved.append(np.asarray(params["w"]))
        return tmp_path / "weights"

    def evaluate(params, done):
        measured.append(done)
        return {"distance": float(jnp.abs(params["w"]).sum())}

    state = run(tmp_path, save=save, evaluate=evaluate)
    assert len(saved) == 4 and measured == [3, 6]  # at 2, 4, 6 and once more at the end
    np.testing.assert_array_equal(saved[-1], state.ema["w"])
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "distance" in row] == [3, 6]
    assert "step 3: distance" in capsys.readouterr().err

    # Started again, a finished run fetches nothing, and its weights are written as they were.
    def nothing():
        raise AssertionError("a finished run needs no data")

    run(tmp_path, save=save, evaluate=evaluate, data=nothing)
    said = capsys.readouterr().out
    assert "has finished: 6 steps" in said and f"wrote {tmp_path / 'weights'}" in said
    np.testing.assert_array_equal(saved[-1], state.ema["w"])
    assert measured == [3, 6]


def test_the_first_parameters_can_be_prepared(tmp_path):
    state = run(
        tmp_path,
        prepare=lambda params: jax.tree.map(lambda p: 5.0 * p, params),
        optimizer=Adam(learning_rate=1e-9),
    )
    np.testing.assert_allclose(state.params["w"], 5.0 * np.eye(3), atol=1e-6)


def test_losses_are_remembered(tmp_path):
    def counting(params, data, keys, memory):
        seen = loss(params, data, keys, ())
        return seen._replace(loss=seen.loss + 0.0 * memory, memory=data[:, 0])

    def remember(memory, seen):
        return memory + seen.sum()

    state = run(tmp_path, Problem(counting, jnp.float32(0.0), remember), steps=4)
    expected = sum(fetcher()(step)[:, 0].sum() for step in range(4))
    np.testing.assert_allclose(state.memory, expected, rtol=1e-5)


def test_losses_that_are_not_finite_fail_the_run(tmp_path):
    def broken(params, data, keys, memory):
        seen = loss(params, data, keys, memory)
        return seen._replace(loss=seen.loss * jnp.nan)

    with pytest.raises(UserError, match="6 steps in a row up to step 6"):
        run(tmp_path, Problem(broken), log_every=0, checkpoint_every=0)


def test_an_optimizer_of_ones_own(tmp_path):
    state = run(tmp_path, optimizer=Plain(0.1), steps=1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.fold_in(jax.random.key(4), 0), jnp.arange(8)
    )
    grads = jax.grad(lambda p: loss(p, fetcher()(0), keys, ()).loss)(init())
    np.testing.assert_allclose(state.params["w"], np.eye(3) - 0.1 * grads["w"], rtol=1e-5)


def test_four_devices_train_as_one_does(tmp_path):
    """Raw parameters after plain gradient descent, and what is remembered of all examples."""
    env = dict(
        os.environ,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        PYTHONPATH=str(Path(__file__).resolve().parents[2]),
        JAX_PLATFORMS="cpu",
    )
    command = [sys.executable, __file__, str(tmp_path / "four")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    four = np.load(io.BytesIO((tmp_path / "four" / "w.npy").read_bytes()))
    one = run(tmp_path / "one", optimizer=Plain(0.01))
    np.testing.assert_allclose(four, one.params["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(batch_size=10**9), "batch_size is 1000000000: expected .* at most 65536"),
        (dict(ema_decay=1.0), "ema_decay is 1.0: expected at least 0 and below 1"),
        (dict(eval_every=-1), "eval_every is -1"),
    ],
)
def test_values_that_cannot_be_meant(values, says):
    with pytest.raises(UserError, match=says):
        training(**values)


def test_batches_are_fetched_ahead_and_once():
    asked, third = [], threading.Event()

    def fetch(step):
        asked.append(step)
        if step == 20:
            third.set()
        return step * step

    get = ahead(fetch, 10, stop=60)
    assert get(0) == 0
    assert third.wait(5), "the next two were not fetched meanwhile"
    assert [get(step) for step in (10, 20, 30, 40, 50)] == [100, 400, 900, 1600, 2500]
    assert asked == [0, 10, 20, 30, 40, 50]


if __name__ == "__main__":
    assert jax.device_count() == 4
    folder = Path(sys.argv[1])
    np.save(folder.parent / "w.npy", run(folder, optimizer=Plain(0.01)).params["w"])
    (folder.parent / "w.npy").rename(folder / "w.npy")
