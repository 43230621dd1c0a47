"""The handwritten digits that come with scikit-learn."""

from typing import Any

import numpy as np

from dreamjax.data.base import Split
from dreamjax.data.images import Images, in_memory
from dreamjax.errors import UserError
from dreamjax.settings import settings


@settings
class Digits:
    """1797 handwritten digits, 8 x 8 pixels in 17 levels; each fifth is held out."""

    def load(self, split: Split) -> Images:
        """Return a split; raises UserError without scikit-learn."""
        try:
            from sklearn.datasets import load_digits  # slow to import
        except ImportError as error:
            raise UserError(
                'the digits come with scikit-learn: pip install "dreamjax[diffusion]"'
            ) from error
        digits: Any = load_digits()
        held_out = np.arange(len(digits.target)) % 5 == 4
        kept = held_out if split == "held_out" else ~held_out
        images = digits.images[kept][..., None]
        return in_memory("digits", images, digits.target[kept], tuple("0123456789"), 17)
