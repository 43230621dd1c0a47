"""What every task that trains has in common: its seed, its steps, and what happens when."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

from dreamjax.errors import UserError
from dreamjax.settings import Count, Every, Range, Seed, settings
from dreamjax.workdir import CONFIG_FILE, claim, resolved, stored_task

FAILED = "failed.txt"  # why the run went wrong; there until it has a newer checkpoint


@settings
class Run:
    """A run of many steps from one seed."""

    HARMLESS: ClassVar = ("log_every", "checkpoint_every")  # may change when a run goes on

    seed: Seed = 0  # of everything that is drawn
    steps: Count = 1000  # of the whole run
    steps_per_dispatch: Annotated[int, Range(1, 10_000)] = 1  # steps in one call of the device
    log_every: Every = 50  # steps between two lines of metrics; 0: only at the end
    checkpoint_every: Every = 500  # steps between two checkpoints; 0: only at the end

    def __post_init__(self):
        if self.steps % self.steps_per_dispatch:
            raise UserError(
                f"steps is {self.steps}: expected a multiple of steps_per_dispatch, "
                f"{self.steps_per_dispatch}"
            )

    def due(self, done: int, every: int) -> bool:
        """Whether what happens every so many steps (0: never) does after `done` steps.

        A dispatch may step over the very one; at the end everything does.
        """
        passed = every > 0 and done % every < self.steps_per_dispatch
        return passed or done == self.steps

    def claim(self, workdir: str | Path) -> Path:
        """Claim `workdir` for this run and return it, as `workdir.claim` does.

        A run of fewer steps is gone on with, and what that means is said. One that has gone wrong
        may be tried again with other settings, its prompt aside.
        """
        workdir = resolved(workdir)
        stored = stored_task(workdir) if (workdir / CONFIG_FILE).exists() else None
        before = stored.steps if isinstance(stored, type(self)) else self.steps
        more = ("steps",) if before < self.steps else ()
        if (workdir / FAILED).exists():
            more = tuple(field.name for field in dataclasses.fields(self) if field.name != "prompt")
        claim(workdir, self, (*self.HARMLESS, *more))
        if before < self.steps:
            print(
                f"going on to {self.steps} steps with a run of {before}: the learning rate and all "
                f"else that changes goes by fractions of the run, so at step {before} it stands "
                f"where step {round(before**2 / self.steps)} of {before} stood"
            )
        return workdir
