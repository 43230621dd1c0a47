"""The one loop around the training of a network: text prior, diffusion, classifier, probe.

They differ in a loss and in data. All else is here: devices, state, moving average, batches fetched
ahead, checkpoints, evaluation, weights. Example i of a step draws from fold_in(fold_in(key, step),
i), whichever device it lies on, so a run does not depend on how many there are.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.settings import Every, Home, Range, settings
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import train
from dreamjax.training.optimizer import Adam, Decay, Optimizer, apply_gradients
from dreamjax.training.run import Run
from dreamjax.training.state import NetState, ema_update, init_state


@settings
class Training(Run):
    """A run that trains a network on batches and keeps a moving average of its parameters."""

    HARMLESS: ClassVar = (*Run.HARMLESS, "eval_every")

    batch_size: Annotated[int, Range(1, 65_536)] = 64  # examples in a step, over all devices
    ema_decay: Decay = 0.999  # of the moving average, which is what is saved and evaluated
    eval_every: Every = 500  # steps between two evaluations; 0: only at the end
    optimizer: Annotated[Optimizer, Home("dreamjax.training.optimizer")] = Adam()  # of the network


class Batch(NamedTuple):
    """The examples of a step: their numbers in the global batch, and `data` of any kind."""

    index: Int[Array | np.ndarray, "*b"]
    data: PyTree


class Seen(NamedTuple):
    """What a loss makes of one device's examples.

    `loss` is minimised, `metrics` are scalars to show (means over the examples both); of each
    example, `memory` is what `Problem.remember` is given, gathered over all devices.
    """

    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    memory: PyTree = ()


class Loss(Protocol):
    """The loss of one device's examples."""

    def __call__(
        self, params: PyTree, data: PyTree, keys: Key[Array, " b"], memory: PyTree
    ) -> Seen:
        """Return the loss; `keys` are for what the examples draw, one each."""
        ...


def _unchanged(memory: PyTree, seen: PyTree) -> PyTree:
    return memory


class Problem(NamedTuple):
    """What is trained: a loss, and what it remembers from step to step where it does."""

    loss: Loss
    memory: PyTree = ()  # before the first step
    remember: Callable[[PyTree, PyTree], PyTree] = _unchanged  # (memory, Seen.memory) -> memory


def make_step(
    problem: Problem, tx: optax.GradientTransformationExtraArgs, ema_decay: float
) -> Callable:
    """Return one device's part of a step, `step(state, batch, base_key)`, for `parallel.pmap`."""

    def step(
        state: NetState, batch: Batch, base_key: Key[Array, ""]
    ) -> tuple[NetState, dict[str, Array]]:
        step_key = jax.random.fold_in(base_key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch.index)

        def loss_fn(params):
            seen = problem.loss(params, batch.data, keys, state.memory)
            return seen.loss, seen

        (_, seen), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        loss, metrics, grads = parallel.mean((seen.loss, seen.metrics, grads))
        params, opt_state, counts = apply_gradients(tx, grads, loss, state.params, state.opt_state)
        ema = ema_update(state.ema, params, ema_decay, state.step + 1)
        memory = problem.remember(state.memory, parallel.gather(seen.memory))
        return NetState(state.step + 1, params, ema, opt_state, memory), {**metrics, **counts}

    return step


def ahead(fetch: Callable[[int], object], stride: int, stop: int, depth: int = 2) -> Callable:
    """Return `fetch(step)` that fetches the next `depth` steps, each `stride` further, meanwhile.

    Nothing is fetched from `stop` on.
    """
    pool = ThreadPoolExecutor(1)
    pending = {}

    def get(step: int):
        for number in range(step, min(step + stride * (depth + 1), stop), stride):
            if number not in pending:
                pending[number] = pool.submit(fetch, number)
        return pending.pop(step).result()

    return get


def feed(fetch: Callable[[int], PyTree], training: Training, devices) -> Callable[[int], Batch]:
    """Return a function from a step to what a dispatch from there is fed, stacked over `devices`.

    `fetch(step)` gives the data of one step in NumPy, its leaves led by `training.batch_size`.
    """
    count = training.steps_per_dispatch
    shape = (count, training.batch_size)
    index = np.broadcast_to(np.arange(training.batch_size, dtype=np.int32), shape)

    def stacked(step: int) -> Batch:
        parts = [fetch(step + i) for i in range(count)]
        data = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
        return parallel.split_batch(Batch(index, data), devices, count)

    return ahead(stacked, count, training.steps)


def _same(params: PyTree) -> PyTree:
    return params


def fit(
    training: Training,
    workdir: Path,
    problem: Problem,
    *,
    init: Callable[[], PyTree],
    data: Callable[[], Callable[[int], PyTree]],
    prepare: Callable[[PyTree], PyTree] = _same,
    save: Callable[[PyTree], Path] | None = None,
    evaluate: Callable[[PyTree, int], dict[str, float]] | None = None,
    show: tuple[str, ...] = ("loss", "grad_norm"),
) -> NetState:
    """Train from the newest checkpoint in `workdir` on and return the last state.

    Args:
        training: how long, in what batches, by which optimizer.
        workdir: a directory that was claimed for this run.
        problem: what is trained.
        init: the first parameters.
        data: called once there is something to train: a function from a step to its global batch.
        prepare: changes the first parameters before the first step; not called on resuming.
        save: writes averaged parameters and returns the path; called with each checkpoint.
        evaluate: (averaged parameters, finished steps) -> values to log; may write pictures.
        show: names of the metrics that the bar shows.

    Raises UserError where steps in a row are not finite, and what `train` and `Checkpoints` raise.
    """
    tx, params = training.optimizer.make(training.steps), init()
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore_latest(init_state(params, tx, problem.memory))
    if state is None:
        state = init_state(prepare(params), tx, problem.memory)

    def after(done, state, bar, log):
        ema = parallel.first_copy(state.ema)
        if save is not None and training.due(done, training.checkpoint_every):
            save(ema)
        if evaluate is not None and training.due(done, training.eval_every):
            values = evaluate(ema, done)
            log.scalars(done, values)
            bar.note(f"step {done}: " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))

    if int(state.step) < training.steps:
        devices = parallel.devices_for(training.batch_size)
        step = parallel.scan(make_step(problem, tx, training.ema_decay))
        step = parallel.pmap(step, devices)
        batches = feed(data(), training, devices)
        state, key = parallel.replicate((state, jax.random.key(training.seed)), devices)

        def take(number, state):
            return step(state, batches(number), key)

        state = train(take, state, workdir, checkpoints, training, show=show, after=after)
    else:
        print(f"the run in {workdir} has finished: {training.steps} steps")
    checkpoints.close()
    state = parallel.first_copy(state)
    if save is not None:
        print(f"wrote {save(state.ema)}")
    return state
