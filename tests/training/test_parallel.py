"""One step over one device and over eight: the gradient is the same, compared raw."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints


def loss(params, items, key):
    """A loss whose items draw from their global index, as views do."""

    def one(index):
        x = jax.random.normal(jax.random.fold_in(key, index), (16,))
        return jnp.sum(jnp.tanh(params["w"] @ x + params["b"]) ** 2)

    return jnp.mean(jax.vmap(one)(items))


def step(state, items, key):
    """Plain gradient descent, so that a wrong scale of the gradient shows."""
    step_key = jax.random.fold_in(key, state["step"])
    value, grads = jax.value_and_grad(loss)(state["params"], items, step_key)
    value, grads = parallel.mean((value, grads))
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], grads)
    return {"step": state["step"] + 1, "params": params}, {"loss": value, "grads": grads}


def make_state():
    w = jax.random.normal(jax.random.key(1), (5, 16))
    return {"step": jnp.int32(0), "params": {"w": w, "b": jnp.zeros(5)}}


def check_all(count):
    """Compare `count` devices with plain autodiff on the whole batch."""
    assert jax.device_count() == count
    key = jax.random.key(0)
    devices = parallel.devices_for(16)
    assert len(devices) == count
    items = parallel.split_indices(16, devices)
    assert items.shape == (count, 16 // count)

    want_loss, want = jax.value_and_grad(loss)(
        make_state()["params"], jnp.arange(16), jax.random.fold_in(key, 0)
    )
    start = make_state()
    descend = parallel.pmap(step, devices)
    placed = parallel.replicate(start, devices)
    state, metrics = descend(placed, items, parallel.replicate(key, devices))
    jax.block_until_ready(start)  # donating the copy has left the original whole
    np.testing.assert_allclose(metrics["loss"], want_loss, rtol=1e-6)
    for name in want:
        np.testing.assert_allclose(metrics["grads"][name], want[name], rtol=1e-5, atol=1e-6)
    assert state["params"]["w"].shape == (5, 16)  # unstacked

    # Several steps in one dispatch are the same steps, and see their own numbers.
    for _ in range(2):
        state, _ = descend(state, items, key)
    many, metrics = parallel.pmap(parallel.repeat(step, 3), devices)(make_state(), items, key)
    assert many["step"] == 3 and metrics["loss"].shape == (3,)
    np.testing.assert_allclose(many["params"]["w"], state["params"]["w"], rtol=1e-5, atol=1e-6)

    batches = parallel.split_batch(np.tile(np.arange(16), (3, 1)), devices, steps=3)
    assert batches.shape == (count, 3, 16 // count)
    scanned, _ = parallel.pmap(parallel.scan(step), devices)(make_state(), batches, key)
    np.testing.assert_allclose(scanned["params"]["w"], many["params"]["w"], rtol=1e-6, atol=1e-7)

    # What pmap gave can be used by a plain jit beside it.
    local = parallel.first_copy(many)
    assert local["params"]["w"].devices() == {jax.local_devices()[0]}
    assert np.isfinite(jax.jit(loss)(local["params"], jnp.arange(2), key))


def start_process(*args, devices):
    """Run this file as a program on so many fake devices."""
    root = str(Path(__file__).resolve().parents[2])
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, args)],
        env=dict(os.environ, XLA_FLAGS=flags, PYTHONPATH=root, JAX_PLATFORMS="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_one_device():
    check_all(1)


def test_eight_devices_give_the_gradient_of_one():
    process = start_process(devices=8)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "warning" not in output.lower()


def check_process(number, port, directory):
    """Be one of two processes with two devices each: the gradient, a save, and a restore."""
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
    key = jax.random.key(0)
    devices = parallel.devices_for(16)
    items = parallel.split_indices(16, devices)
    np.testing.assert_array_equal(items, number * 8 + np.arange(8).reshape(2, 4))
    want = jax.grad(loss)(make_state()["params"], jnp.arange(16), jax.random.fold_in(key, 0))
    descend = parallel.pmap(step, devices)
    state, metrics = descend(parallel.replicate(make_state(), devices), items, key)
    np.testing.assert_allclose(metrics["grads"]["w"], want["w"], rtol=1e-5, atol=1e-6)

    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state)
    restored = checkpoints.restore_latest(state)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    state, _ = descend(parallel.replicate(restored, devices), items, key)
    assert state["step"] == 2
    checkpoints.close()

    # A process's own, at its own pace, which Orbax would leave empty on any but the first.
    own = Checkpoints(f"{directory}/of-{number}", alone=True)
    mine = jax.tree.map(lambda x: np.asarray(x) + number, make_state())
    for step_number in range(1, 2 + number):
        own.save(step_number, mine)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(own.restore_latest(mine)), strict=True):
        assert a.tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one_and_share_a_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start_process(number, port, tmp_path, devices=2) for number in (0, 1)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def test_batch_is_split_in_order():
    devices = jax.devices() * 4  # the shape is what counts here
    batch = {"x": np.arange(24).reshape(8, 3), "y": np.arange(8)}
    split = parallel.split_batch(batch, devices)
    assert split["x"].shape == (4, 2, 3)
    np.testing.assert_array_equal(split["y"], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(
        parallel.split_batch(np.arange(16).reshape(2, 8), devices, steps=2)[1], [[2, 3], [10, 11]]
    )


def test_devices_divide_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    counts = {items: len(parallel.devices_for(items)) for items in (1, 4, 6, 7, 8, 12, 16)}
    assert counts == {1: 1, 4: 4, 6: 6, 7: 7, 8: 8, 12: 6, 16: 8}
    with pytest.raises(UserError, match="not 0"):
        parallel.devices_for(0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert len(parallel.devices_for(16)) == 8
    with pytest.raises(UserError, match="multiple of 8"):
        parallel.devices_for(12)


if __name__ == "__main__":
    if sys.argv[1:]:
        check_process(int(sys.argv[1]), *sys.argv[2:])
    else:
        check_all(8)
