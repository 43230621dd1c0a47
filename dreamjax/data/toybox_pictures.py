"""Pictures of the toybox, drawn once and kept on disk."""

from typing import Annotated

from dreamjax.data.base import Split
from dreamjax.data.images import Images, in_memory
from dreamjax.settings import Range, settings
from dreamjax.toybox.kinds import KINDS
from dreamjax.toybox.pictures import Labelled
from dreamjax.workdir import resolved

Drawn = Annotated[int, Range(1, 10**7)]  # pictures


@settings
class ToyboxPictures:
    """Pictures of toybox objects, labelled with their kind; drawn if they are not there."""

    dir: str = "~/.cache/dreamjax"  # where they are kept
    size: Annotated[int, Range(1, 512)] = 32  # height and width, in pixels
    counts: tuple[Drawn, Drawn, Drawn] = (131_072, 2048, 2048)  # of train, validation, held_out
    flip: bool = False  # mirror half of what is trained on

    def load(self, split: Split) -> Images:
        """Return a split."""
        found = self.labelled(split)
        kinds = tuple(kind.name for kind in KINDS)
        return in_memory("toybox", found.rgb, found.kind, kinds, flip=self.flip)

    def labelled(self, split: str) -> Labelled:
        """Return a split, "validation" too, with captions and all labels."""
        from dreamjax.toybox.dataset import load  # slow to import

        return load(str(resolved(self.dir)), split, self.size, self.counts)
