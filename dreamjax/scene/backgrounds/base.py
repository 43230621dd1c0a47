"""The protocol of backgrounds."""

from typing import Protocol

from jaxtyping import Array, Float, Key, PyTree


class Background(Protocol):
    """What is behind the object; settings, no arrays."""

    @property
    def each(self) -> int:
        """How many backgrounds every rendering is shown before."""
        ...

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start, {} where nothing is learnt."""
        ...

    def __call__(
        self, params: PyTree, key: Key[Array, ""], direction: Float[Array, "h w 3"]
    ) -> Float[Array, "each h w 3"]:
        """Pictures in [0, 1] behind one view, whose rays have these unit directions."""
        ...
