"""What every source of labelled images is."""

from typing import Literal, Protocol

from dreamjax.data.images import Images

Split = Literal["train", "held_out"]


class Pictures(Protocol):
    """A set of labelled images, some of them held out from training."""

    def load(self, split: Split) -> Images:
        """Return a split; raises UserError where it is not there."""
        ...
