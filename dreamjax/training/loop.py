"""The loop around every training step: progress, log, checkpoints, Ctrl-C."""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from dreamjax.errors import UserError
from dreamjax.training import hosts
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.interrupt import Interrupt
from dreamjax.training.metrics import Log, Progress, read_history
from dreamjax.training.optimizer import SKIPPED_IN_ROW, skipped_in_row
from dreamjax.training.run import FAILED, Run
from dreamjax.workdir import write_text


class Recorder:
    """What a run writes as it goes: its metrics and its checkpoints, each when it is due.

    The seconds that the run has taken, over all its starts, are logged beside the metrics.
    """

    def __init__(
        self, workdir: Path, checkpoints: Checkpoints, run: Run, start: int, writes: bool = True
    ):
        """Go on from `start` finished steps; what it `writes` not, another process does."""
        self._workdir, self._checkpoints, self._run = workdir, checkpoints, run
        self._writes, self._owed = writes, False
        self._latest: Callable[[], Mapping[str, Any]] = dict
        self._began = time.monotonic() - spent(workdir)
        self.log = Log(workdir, start, writes)

    def metrics(self, done: int, metrics: Callable[[], Mapping[str, Any]]) -> bool:
        """Log the `metrics()` of the last step where that is due; returns whether it was.

        Raises UserError where too many steps in a row are not finite, or the last ones of the run.
        """
        self._latest = metrics
        logs = self._run.due(done, self._run.log_every)
        if not (logs or self.saves(done)):
            return False
        found = metrics()
        in_row = skipped_in_row(found)
        if in_row.max() >= SKIPPED_IN_ROW or (done == self._run.steps and in_row[-1]):
            raise self._failure(done, int(in_row.max()), done - int(in_row[-1]))
        if logs:
            self.log.scalars(done, {**found, "seconds": time.monotonic() - self._began})
        return logs

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due."""
        return self._owed or self._run.due(done, self._run.checkpoint_every)

    def save(self, state: PyTree) -> bool:
        """Save a state as a checkpoint of its step, and return whether that was done.

        A state after which steps were skipped may be why they were: it must not take a good one's
        place. The next that is none is saved.
        """
        self._owed = bool(skipped_in_row(self._latest())[-1])
        if self._owed:
            return False
        self._checkpoints.save(int(state.step), state)
        if self._writes:
            (self._workdir / FAILED).unlink(missing_ok=True)
        return True

    def _failure(self, done: int, skipped: int, good: int) -> UserError:
        """The error of a run whose steps went wrong after `good` ones; notes it in the workdir."""
        # What is wrong may have begun before it showed: a state is good if many steps after it are.
        self._checkpoints.set_aside(after=good - SKIPPED_IN_ROW)
        if good == 0:
            advice = (
                "the very first did, so look at the prior's weights and dtype, at guidance, and at "
                "the weights of penalties"
            )
        else:
            advice = (
                "lower optimizer.learning_rate or set optimizer.clip_norm; if that is no help, "
                "look at guidance, at the weights of penalties, and at dtypes"
            )
        step = self._checkpoints.latest_step() or 0
        message = (
            f"{skipped} steps in a row up to step {done} had a loss or gradient that is not "
            f"finite: {advice}; started in the same workdir with other settings, the run goes on "
            f"from step {step} (JAX_DEBUG_NANS=True names the operation that makes a NaN)"
        )
        if self._writes:
            write_text(self._workdir / FAILED, message + "\n")
        return UserError(message)

    def close(self) -> None:
        """Finish the files."""
        self.log.close()


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

    Of several processes the first alone logs and shows the bar. Ctrl-C saves a checkpoint, says how
    to go on, and is raised again. Raises UserError as `Recorder.metrics` does.
    """
    start = int(state.step)
    recorder = Recorder(workdir, checkpoints, run, start, hosts.is_first())
    try:
        with (
            Progress(run.steps, start, show, shown=hosts.is_first()) as bar,
            Interrupt() as interrupt,
        ):
            for step in range(start, run.steps, run.steps_per_dispatch):
                if step == start or step in compiles_at:
                    bar.compiling(step)
                state, metrics = take(step, state)
                done = step + run.steps_per_dispatch
                logged = recorder.metrics(done, lambda metrics=metrics: metrics)
                bar.update(done, metrics)
                if recorder.saves(done):
                    recorder.save(state)
                after(done, state, bar, recorder.log)
                if hosts.count() == 1:
                    interrupt.check()
                elif logged and any(hosts.gather(interrupt.asked)):  # all stop at the same step
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        saved = recorder.save(state)
        if hosts.is_first():
            step = int(state.step)
            print(
                f"saved step {step}; the same command goes on from there"
                if saved
                else f"step {step} was not saved, as its loss or gradient was not finite"
            )
        raise
    finally:
        recorder.close()
    return state


def spent(workdir: Path) -> float:
    """Seconds that the run in `workdir` had taken when it last logged."""
    return max((row.get("seconds", 0.0) for row in read_history(workdir)), default=0.0)
