"""What all that trains has in common: steps, and what is due when."""

import dataclasses

import pytest

from dreamjax.errors import UserError
from dreamjax.settings import settings
from dreamjax.training.run import Run
from dreamjax.workdir import stored_task


@settings
class Longer(Run):
    """A task with its own number of steps."""

    steps: int = 2000


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(steps=0), "steps is 0: expected at least 1"),
        (dict(steps=-1), "steps is -1"),
        (dict(steps_per_dispatch=0), "steps_per_dispatch is 0"),
        (dict(steps_per_dispatch=-1), "steps_per_dispatch is -1"),
        (dict(log_every=-1), "log_every is -1"),
        (dict(checkpoint_every=-3), "checkpoint_every is -3"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**32), "seed is 4294967296"),
        (dict(steps=10, steps_per_dispatch=4), "steps is 10: .* multiple of steps_per_dispatch, 4"),
    ],
)
def test_values_that_cannot_be_meant(values, says):
    with pytest.raises(UserError, match=says):
        Run(**values)


def test_a_task_inherits_checks_and_defaults():
    assert (Longer().steps, Longer().log_every) == (2000, Run().log_every)
    with pytest.raises(UserError, match="multiple of steps_per_dispatch"):
        Longer(steps_per_dispatch=3)


def test_what_is_due():
    run = Run(steps=12, steps_per_dispatch=1)
    assert [done for done in range(1, 13) if run.due(done, 5)] == [5, 10, 12]
    assert [done for done in range(1, 13) if run.due(done, 0)] == [12]
    # A dispatch of 4 ends at 4, 8, 12 and steps over 5 and 10.
    run = Run(steps=12, steps_per_dispatch=4)
    assert [done for done in (4, 8, 12) if run.due(done, 5)] == [8, 12]


def test_a_run_may_be_given_more_steps_but_not_fewer(tmp_path, capsys):
    run = Run(steps=100)
    assert run.claim(tmp_path / "run") == tmp_path / "run"
    dataclasses.replace(run, log_every=7).claim(tmp_path / "run")
    assert capsys.readouterr().out == ""
    longer = dataclasses.replace(run, steps=200)
    longer.claim(tmp_path / "run")
    assert "going on to 200 steps with a run of 100" in capsys.readouterr().out
    assert stored_task(tmp_path / "run") == longer
    with pytest.raises(UserError, match="another run: steps is 200 there and 100 here"):
        run.claim(tmp_path / "run")
    with pytest.raises(UserError, match="another run: seed is 0 there and 1 here"):
        dataclasses.replace(longer, steps=400, seed=1).claim(tmp_path / "run")
