"""Callables over many points, a chunk of one size at a time."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

CHUNK = 65536
"""Callables always get this many points, so that a jitted one compiles once."""


def in_chunks(
    function: Callable[[Float[np.ndarray, "chunk 3"]], np.ndarray], points: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N *rest"]:
    """`function` of all points as float32; the last chunk is filled up with the origin.

    For no point at all it is asked once about the origin, to learn the shape of its results.
    """
    results = []
    for start in range(0, max(len(points), 1), CHUNK):
        chunk = points[start : start + CHUNK]
        padded = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)))
        results.append(np.asarray(function(padded), np.float32)[: len(chunk)])
    return np.concatenate(results)
