"""Counting: how many of how many are right. N is a number of pictures."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Count(NamedTuple):
    """`right` of `of`; counts of disjoint sets add up with `total`."""

    right: int
    of: int

    @property
    def share(self) -> float:
        """In [0, 1]; NaN where nothing was counted."""
        return self.right / self.of if self.of else float("nan")


def accuracy(
    predicted: Int[np.ndarray, " n"],
    truth: Int[np.ndarray, " n"],
    counted: Bool[np.ndarray, " n"] | None = None,
) -> Count:
    """How often the two agree, where `counted`."""
    counted = np.ones(len(truth), bool) if counted is None else np.asarray(counted)
    agree = np.asarray(predicted) == np.asarray(truth)
    return Count(int((agree & counted).sum()), int(counted.sum()))


def total(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    counts = list(counts)
    return Count(sum(c.right for c in counts), sum(c.of for c in counts))


def confusion(
    predicted: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts [truth, predicted]."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(truth), np.asarray(predicted)), 1)
    return table
