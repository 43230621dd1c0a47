"""The loop around every training step: progress, log, checkpoints, Ctrl-C."""

import time
from collections.abc import Callable
from pathlib import Path

from dreamjax.errors import UserError
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.interrupt import Interrupt
from dreamjax.training.metrics import Log, Progress, read_history
from dreamjax.training.optimizer import check_skipped


def train(
    take: Callable,
    state,
    workdir: Path,
    checkpoints: Checkpoints,
    *,
    steps: int,
    steps_per_dispatch: int,
    log_every: int,
    checkpoint_every: int,
    show: tuple[str, ...],
    after: Callable = lambda done, state, bar, log: None,
):
    """Go from `state.step` to `steps` and return the state.

    `take(step, state) -> (state, metrics)` takes `steps_per_dispatch` steps; `after` is called with
    the number of finished steps, the state, the bar and the log. The seconds that the run has
    taken, over all its starts, are logged beside the metrics. Ctrl-C saves a checkpoint, says how
    to go on, and is raised again. Raises UserError where too many steps in a row are not finite,
    and for `steps` that are no multiple of `steps_per_dispatch`.
    """
    if steps % steps_per_dispatch:
        raise UserError(
            f"steps is {steps}: expected a multiple of steps_per_dispatch, {steps_per_dispatch}"
        )
    start = int(state.step)
    # How often is told in steps, and a dispatch may step over the very one.
    due = lambda done, every: done % every < steps_per_dispatch or done == steps  # noqa: E731
    log = Log(workdir, start)
    began = time.monotonic() - spent(workdir)
    try:
        with Progress(steps, start, show) as bar, Interrupt() as interrupt:
            for step in range(start, steps, steps_per_dispatch):
                state, metrics = take(step, state)
                done = step + steps_per_dispatch
                if due(done, log_every):
                    check_skipped(metrics, done)
                    log.scalars(done, {**metrics, "seconds": time.monotonic() - began})
                bar.update(done, metrics)
                if due(done, checkpoint_every):
                    checkpoints.save(done, state)
                after(done, state, bar, log)
                interrupt.check()
    except KeyboardInterrupt:
        checkpoints.save(int(state.step), state)
        print(f"saved step {int(state.step)}; the same command goes on from there")
        raise
    finally:
        log.close()
    return state


def spent(workdir: Path) -> float:
    """Seconds that the run in `workdir` had taken when it last logged."""
    return max((row.get("seconds", 0.0) for row in read_history(workdir)), default=0.0)
