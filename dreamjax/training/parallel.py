"""Spreads one step over devices; nothing else in the package knows how many there are.

A step is written for one device's share, `step(state, batch, *shared) -> (state, metrics)`, and
calls `mean` on its gradient, its loss and its metrics before it uses them; `pmap` then maps it over
the leading device axis of `batch`, with state and `shared` the same everywhere. A machine with one
device runs the same code. Since every item of a batch draws from its own global index, and shares
are of equal size, the result does not depend on the number of devices but for rounding.

Many scenes are the same state with a leading axis of scenes: `pmap_scenes` maps a step over it, so
many to each of this process's devices, and no device waits for another.

`mean` under `pmap` turns per-device gradients into the gradient of the global mean. What is
returned without it is one device's value, silently.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from dreamjax.errors import UserError

AXIS = "devices"
Devices = Sequence[Any]  # of jax.Device, which type checkers take for a variable


def mean(tree):
    """Return the mean of `tree` over all devices; for use inside a step under `pmap`."""
    return jax.lax.pmean(tree, AXIS)


def gather(tree):
    """Return the batch of all devices, in global order; for use inside a step under `pmap`."""
    return jax.lax.all_gather(tree, AXIS, tiled=True)


def alone(tree):
    """Return `tree`: what `mean` is to a step whose batch lies whole on its device."""
    return tree


def devices_for(items: int) -> Devices:
    """Return the devices that a batch of `items` is spread over, in global order.

    With one process these are as many as divide `items` evenly; several processes must use all.
    Raises UserError where that cannot be.
    """
    if items < 1:
        raise UserError(f"a batch needs at least one item, not {items}")
    devices = jax.devices()
    if jax.process_count() > 1:
        if items % len(devices):
            raise UserError(
                f"a batch of {items} cannot be spread evenly over the {len(devices)} devices of "
                f"{jax.process_count()} processes: make it a multiple of {len(devices)}"
            )
        return tuple(devices)
    count = max(d for d in range(1, len(devices) + 1) if items % d == 0)
    return tuple(devices[:count])


def local_count() -> int:
    """Return how many devices this process has."""
    return jax.local_device_count()


def devices_for_scenes(scenes: int, each: int) -> Devices:
    """Return this process's devices, no more than scenes need of which each holds so many."""
    return tuple(jax.local_devices()[: math.ceil(scenes / each)])


def local_rows(devices: Devices) -> np.ndarray:
    """Return which rows of a batch stacked over `devices` this process feeds, in order."""
    here = jax.process_index()
    return np.array([row for row, d in enumerate(devices) if d.process_index == here], np.int32)


def split_indices(items: int, devices: Devices) -> Int[np.ndarray, "devices share"]:
    """Return the global indices of a batch's items, by the devices of this process."""
    rows = np.arange(items, dtype=np.int32).reshape(len(devices), -1)
    return rows[local_rows(devices)]


def split_batch(batch, devices: Devices, steps: int = 0):
    """Stack a global batch `[items, ...]` over this process's devices as `[devices, share, ...]`.

    With `steps`, leaves are `[steps, items, ...]` and become `[devices, steps, share, ...]`, as
    `pmap(scan(step))` wants them.
    """

    def split(x):
        if steps == 0:
            x = np.reshape(x, (len(devices), -1, *np.shape(x)[1:]))
        else:
            x = np.moveaxis(np.reshape(x, (steps, len(devices), -1, *np.shape(x)[2:])), 1, 0)
        return x[local_rows(devices)]

    return jax.tree.map(split, batch)


def replicate(tree, devices: Devices):
    """Return a copy of `tree` on each of this process's `devices`, as `pmap` takes it.

    Call it once on the state before the first step, and on what is `shared`: else every step
    copies the latter anew. The copy is a true one, so that donating it leaves `tree` whole.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    everywhere = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec())
    # device_put may share the buffer on the first device, whatever `may_alias` says.
    return jax.device_put(jax.tree.map(jnp.array, tree), everywhere)


def _lead(result):
    """One step's result as a scan over one step would give it.

    A loop of one is not left to XLA: on a CPU a UNet's training step ran ten times slower inside a
    loop than outside (a forward pass did not).
    """
    state, metrics = result
    return state, jax.tree.map(lambda x: x[None], metrics)


def repeat(step: Callable, steps: int) -> Callable:
    """Return a step that takes `steps` steps on the same batch; metrics gain a leading axis.

    A run that must resume bit for bit should stop only at multiples of `steps`: another count is
    another program, which may round differently.
    """

    def many(state, batch, *shared):
        if steps == 1:
            return _lead(step(state, batch, *shared))
        return jax.lax.scan(lambda s, _: step(s, batch, *shared), state, None, length=steps)

    return many


def scan(step: Callable) -> Callable:
    """Return a step over batches stacked on a leading axis; metrics gain that axis."""

    def many(state, batches, *shared):
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            return _lead(step(state, jax.tree.map(lambda x: x[0], batches), *shared))
        return jax.lax.scan(lambda s, batch: step(s, batch, *shared), state, batches)

    return many


def pmap(step: Callable, devices: Devices, shared: int = 1) -> Callable:
    """Compile `step(state, batch, *shared) -> (state, metrics)` over `devices`.

    `batch` leads with the device axis (`split_indices`, `split_batch`); state and the `shared`
    further arguments are the same on all devices (`replicate`). The state is donated: go on with
    the one that comes back.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, *([None] * shared)),
        out_axes=None,
        # All processes' devices in their usual order is pmap's own default, and all it takes there.
        devices=None if jax.process_count() > 1 else list(devices),
        donate_argnums=0,
    )


def pmap_scenes(step: Callable, devices: Devices, each: int, shared: int) -> Callable:
    """Compile `step(state, own, *shared) -> (state, metrics)` over scenes, `each` a device.

    What comes out is called with (states, own, here, *shared). Leaves of states, of `own` (what
    else differs from scene to scene) and of metrics lead with [devices, each]. Scenes that are not
    `here`, bool [devices, each], stay as they are; their metrics say nothing. States are donated.
    """

    def one_device(states, own, here, *same):
        def one(state, own):
            return step(state, own, *same)

        if each == 1:  # not left to vmap: the same program as that of a scene alone
            here = here[0]
            lanes = jax.tree.map(lambda x: x[0], (states, own))
            after, metrics = jax.tree.map(lambda x: x[None], one(*lanes))
        else:
            after, metrics = jax.vmap(one)(states, own)

        def chosen(new, old):
            return jnp.where(here.reshape(here.shape + (1,) * (new.ndim - here.ndim)), new, old)

        return jax.tree.map(chosen, after, states), metrics

    return jax.pmap(
        one_device,
        axis_name=AXIS,
        in_axes=(0, 0, 0, *([None] * shared)),
        devices=list(devices),
        donate_argnums=0,
    )


def make_put_scene(devices: Devices) -> Callable:
    """Return `put(scenes, scene, here) -> scenes`: `scene` in the one place that is `here`."""

    def put(scenes, scene, here):
        def chosen(old, new):
            return jnp.where(here.reshape(here.shape + (1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(chosen, scenes, scene)

    return jax.pmap(put, in_axes=(0, None, 0), devices=list(devices), donate_argnums=0)


def scene_at(scenes, place: tuple[int, int]):
    """Return the scene at (device, number on it), on its device."""
    device, lane = place

    def at(x):
        local = x.addressable_data(device)
        return local.reshape(-1, *x.shape[2:])[lane]

    return jax.tree.map(at, scenes)


def first_copy(tree):
    """Return this process's first copy of what `pmap` returned, for use outside it.

    Nothing is copied, so use it before the state it came from is donated to the next step.
    """
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
