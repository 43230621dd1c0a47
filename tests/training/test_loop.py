"""The loop around steps of any kind."""

import io
import json
import os
import signal
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.training import loop
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import spent, train
from dreamjax.training.metrics import Progress
from dreamjax.training.run import Run


class Counting(NamedTuple):
    """A state of its own kind: the sum of the numbers of the steps taken."""

    step: object
    total: object


START = Counting(jnp.int32(0), {"sum": jnp.float32(0.0)})


def take(step, state):
    """One step; the step's number is what the loop says it is."""
    assert int(state.step) == step
    total = {"sum": state.total["sum"] + step}
    return Counting(state.step + 1, total), {"loss": total["sum"], "skipped_in_row": 0}


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_any_state_is_taken_to_the_end(tmp_path):
    seen = []
    state = train(
        take,
        START,
        tmp_path,
        Checkpoints(tmp_path / "checkpoints"),
        Run(steps=10, log_every=4, checkpoint_every=6),
        show=("loss",),
        after=lambda done, state, bar, log: seen.append((done, float(state.total["sum"]))),
    )
    assert (int(state.step), float(state.total["sum"])) == (10, 45.0)
    assert seen == [(n, n * (n - 1) / 2) for n in range(1, 11)]
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 10]
    assert spent(tmp_path) > 0
    saved = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert saved == ["10", "6"]


def test_never_is_only_at_the_end(tmp_path):
    run = Run(steps=5, log_every=0, checkpoint_every=0)
    train(take, START, tmp_path, Checkpoints(tmp_path / "checkpoints"), run, show=())
    assert [row["step"] for row in rows(tmp_path)] == [5]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_ctrl_c_saves_and_the_rest_is_taken_later(tmp_path, capsys):
    def interrupted(step, state):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return take(step, state)

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    run = Run(steps=8)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, START, tmp_path, checkpoints, run, show=())
    assert "saved step 4; the same command goes on from there" in capsys.readouterr().out
    state = train(take, checkpoints.restore_latest(START), tmp_path, checkpoints, run, show=())
    assert (int(state.step), float(state.total["sum"])) == (8, 28.0)


def skipping(*skipped):
    """A step that says of those of these numbers that they were not finite."""

    def step(number, state):
        state, metrics = take(number, state)
        row = 0
        while number - row in skipped:
            row += 1
        return state, metrics | {"skipped_in_row": row}

    return step


@pytest.mark.parametrize(
    "steps, skipped, says, kept",
    [
        (5, range(5), "5 steps in a row up to step 5 .* the very first did", None),
        (100, range(100), "20 steps in a row up to step 20 .* goes on from step 0", None),
        (100, range(82, 100), "18 .* lower optimizer.learning_rate .* from step 50", 50),
        (100, [99], "1 steps in a row up to step 100 .* goes on from step 75", 75),
        (100, range(30, 100), "20 steps in a row up to step 50 .* goes on from step 0", None),
    ],
)
def test_a_run_whose_steps_go_wrong_fails_and_keeps_a_good_state(
    tmp_path, steps, skipped, says, kept
):
    run = Run(steps=steps, log_every=1, checkpoint_every=25)
    run.claim(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=says):
        train(skipping(*skipped), START, tmp_path, checkpoints, run, show=())
    assert checkpoints.latest_step() == kept
    assert "steps in a row" in (tmp_path / "failed.txt").read_text()
    # Other settings may help; a run that gets further is again one run.
    better = Run(steps=steps, log_every=1, checkpoint_every=25, seed=7)
    better.claim(tmp_path)
    train(take, checkpoints.restore_latest(START) or START, tmp_path, checkpoints, better, show=())
    assert not (tmp_path / "failed.txt").exists() and checkpoints.latest_step() == steps
    with pytest.raises(UserError, match="seed is 7 there and 0 here"):
        run.claim(tmp_path)


def test_a_few_skipped_steps_only_put_a_checkpoint_off(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    run = Run(steps=8, log_every=0, checkpoint_every=3)
    train(skipping(2, 3), START, tmp_path, checkpoints, run, show=())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "6", "8"]
    # Nor does Ctrl-C save such a state.
    step = skipping(2, 3)

    def interrupted(number, state):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number, state)

    checkpoints = Checkpoints(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, START, tmp_path, checkpoints, run, show=())
    assert checkpoints.latest_step() is None
    assert "step 4 was not saved" in capsys.readouterr().out


def test_the_bar_says_when_a_program_is_compiled(tmp_path, monkeypatch):
    out = io.StringIO()

    class Spoken(Progress):
        """The bar, written to where it can be read."""

        def __init__(self, total, start, show, shown):
            super().__init__(total, start, show, out, shown)

    monkeypatch.setattr(loop, "Progress", Spoken)
    state = START._replace(step=np.int32(2))
    run = Run(steps=9)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    train(take, state, tmp_path, checkpoints, run, show=(), compiles_at=(0, 6))
    said = [line for line in out.getvalue().splitlines() if "compiling" in line]
    assert said == ["step 2/9  compiling ...", "step 6/9  compiling ..."]
