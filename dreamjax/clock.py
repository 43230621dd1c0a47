"""Time in a run: how far it is, and values that change on the way by fractions of the run."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.settings import Real, ShareSpan, settings


class Clock(NamedTuple):
    """How far a run is: `step` finished steps of `total`."""

    step: int | Int[Array, ""]
    total: int | Int[Array, ""]

    @property
    def fraction(self) -> Float[Array, ""]:
        """The finished share of the run, 0 to 1."""
        return jnp.clip(jnp.asarray(self.step, jnp.float32) / self.total, 0.0, 1.0)


@settings
class Ramp:
    """A value that moves linearly from `start` to `end` while the run goes through `over`."""

    start: Real = 0.0  # up to the first of `over`
    end: Real = 0.0  # from the second of `over` on
    over: ShareSpan = (0.0, 1.0)  # fractions of the run between which the value moves

    @classmethod
    def from_number(cls, value: float) -> "Ramp":
        """The same value all the time."""
        return cls(value, value)

    def __str__(self) -> str:
        """As `--help` shows it."""
        if self.start == self.end:
            return f"{self.start:g}"
        first, last = self.over
        return f"{self.start:g} to {self.end:g} while the run goes from {first:.3g} to {last:.3g}"

    def __call__(self, clock: Clock) -> Float[Array, ""]:
        """The value at this time."""
        first, last = self.over
        done = jnp.clip((clock.fraction - first) / max(last - first, 1e-6), 0.0, 1.0)
        return self.start + done * (self.end - self.start)
