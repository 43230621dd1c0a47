"""Ranges that several parts of the scene share."""

import dataclasses
from typing import Annotated

from dreamjax.clock import Ramp
from dreamjax.settings import LARGE, Range, Rising


@dataclasses.dataclass(frozen=True)
class BothEnds(Range):
    """Of a Ramp: both its ends lie in the range."""

    def __contains__(self, value: Ramp) -> bool:
        """Whether `start` and `end` lie in the range."""
        return super().__contains__(value.start) and super().__contains__(value.end)


Length = Annotated[float, Range(0.01, 1000.0)]  # scene units
LengthSpan = Annotated[tuple[Length, Length], Rising()]
Weight = Annotated[Ramp, BothEnds(0.0, LARGE)]  # of a loss
