"""The loop around every training step: progress, log, checkpoints, Ctrl-C."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

from jaxtyping import PyTree

from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.interrupt import Interrupt
from dreamjax.training.metrics import Log, Progress, read_history
from dreamjax.training.optimizer import SKIPPED_IN_ROW, check_skipped
from dreamjax.training.run import Run


def _nothing(done: int, state: PyTree, bar: Progress, log: Log) -> None:
    """Do nothing after a step."""


def train(
    take: Callable[[int, PyTree], tuple[PyTree, dict]],
    state: PyTree,
    workdir: Path,
    checkpoints: Checkpoints,
    run: Run,
    *,
    show: tuple[str, ...],
    after: Callable[[int, PyTree, Progress, Log], None] = _nothing,
    compiles_at: Collection[int] = (),
) -> PyTree:
    """Go from `state.step` to `run.steps` and return the state.

    Args:
        take: `take(step, state) -> (state, metrics)` takes `run.steps_per_dispatch` steps.
        state: any pytree with a field `step`, the number of finished steps.
        workdir: where metrics are logged.
        checkpoints: where states are saved.
        run: how long, and what happens when.
        show: names of the metrics that the bar shows.
        after: called after each dispatch with the finished steps, the state, the bar and the log.
        compiles_at: steps, beside the first, at which `take` compiles a new program; their time is
            left out of the estimate.

    The seconds that the run has taken, over all its starts, are logged beside the metrics. Ctrl-C
    saves a checkpoint, says how to go on, and is raised again. Raises UserError where too many
    steps in a row are not finite.
    """
    start = int(state.step)
    log = Log(workdir, start)
    began = time.monotonic() - spent(workdir)
    limit = min(SKIPPED_IN_ROW, run.steps)
    try:
        with Progress(run.steps, start, show) as bar, Interrupt() as interrupt:
            for step in range(start, run.steps, run.steps_per_dispatch):
                if step == start or step in compiles_at:
                    bar.compiling(step)
                state, metrics = take(step, state)
                done = step + run.steps_per_dispatch
                logs, saves = (run.due(done, n) for n in (run.log_every, run.checkpoint_every))
                if logs or saves:
                    check_skipped(metrics, done, limit)
                if logs:
                    log.scalars(done, {**metrics, "seconds": time.monotonic() - began})
                bar.update(done, metrics)
                if saves:
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
