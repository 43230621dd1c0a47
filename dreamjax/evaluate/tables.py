"""Scores as Markdown: what was measured, beside its ceiling, with counts."""

import textwrap
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dreamjax.evaluate.scores import Count, total
from dreamjax.scene.views import VIEW_WORDS

SPLITS = (("trained", False), ("held-out", True))
HEADS = {
    "kind": "kind",
    "first": "first colour",
    "second": "second colour",
    "object": "all three",
    "view": "view",
}
DREAM_HEADS = {
    **HEADS,
    "geometry": "kind, textureless",
    "faces": "second faces",
    "solid": "solid",
    "silhouette": "silhouette",
    "mesh_object": "all three, mesh",
    "mesh_geometry": "kind, textureless mesh",
}
VIEW_HEADS = ("view", "faces")


class Score(NamedTuple):
    """One line of a table: counts by head, of what is scored and of the ceiling."""

    name: str
    held_out: bool
    tellable: bool
    counts: dict[str, Count]
    ceiling: dict[str, Count]


def sum_split(name: str, rows: list[Score], held_out: bool) -> Score:
    """The total of the rows of one split; views of those kinds alone whose sides differ."""
    rows = [row for row in rows if row.held_out == held_out]

    def add(field):
        return {
            head: total(
                getattr(row, field)[head] for row in rows if row.tellable or head not in VIEW_HEADS
            )
            for head in (rows[0].counts if rows else ())
        }

    return Score(name, held_out, True, add("counts"), add("ceiling"))


def _cell(count: Count | None) -> str:
    return f"{100 * count.share:.1f} % ({count.right}/{count.of})" if count and count.of else "-"


def _beside(row: Score, head: str) -> str:
    got, best = row.counts[head], row.ceiling[head]
    if not got.of:
        return "-"
    mark = "" if row.tellable or head not in VIEW_HEADS else " \\*"
    return f"{got.right}/{got.of} ({best.right}/{best.of}){mark}"


def _lines(first: str, heads: dict[str, str]) -> list[str]:
    return [f"| {first} | " + " | ".join(heads.values()) + " |", "|---" * (len(heads) + 1) + "|"]


def totals(scores: list[Score], heads: dict[str, str], what: str) -> str:
    """Two lines a score, `what` and its ceiling, with percentages and counts."""
    lines = _lines("", heads)
    for score in (s for s in scores if s.counts):
        for name, counts in ((what, score.counts), ("ceiling", score.ceiling)):
            cells = " | ".join(_cell(counts[head]) for head in heads)
            lines.append(f"| {score.name}: {name} | {cells} |")
    return "\n".join(lines)


def details(rows: list[Score], heads: dict[str, str], what: str) -> str:
    """A line a prompt: counts of `what`, and those of the ceiling in brackets."""
    lines = _lines("prompt", heads)
    for row in rows:
        name = f"{row.name} (held out)" if row.held_out else row.name
        lines.append(f"| {name} | " + " | ".join(_beside(row, head) for head in heads) + " |")
    star = "\\* the sides of this kind cannot be told apart in ground truth; not in the totals."
    return "\n".join([f"By prompt: {what} (ceiling).", "", *lines, "", star])


def view_table(
    looks: Int[np.ndarray, "views views"], ceiling: Int[np.ndarray, "views views"], what: str
) -> str:
    """Counts [truth, look] of views, those of the ceiling as percentages in brackets."""
    lines = [f"What each side looks like: {what} (ceiling).", ""]
    lines += _lines("it is", {word: f"looks {word}" for word in VIEW_WORDS})
    for word, got, best in zip(VIEW_WORDS, looks, ceiling, strict=True):
        if got.sum():
            shares = 100 * best / max(best.sum(), 1)
            cells = (f"{g}/{got.sum()} ({b:.0f} %)" for g, b in zip(got, shares, strict=True))
            lines.append(f"| {word} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def not_scored(lines: list[str]) -> list[str]:
    """A list of `lines`, of what has no score, or nothing."""
    return ["Not scored:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


def filled(text: str) -> str:
    """A paragraph of lines of at most 100 characters."""
    return textwrap.fill(" ".join(text.split()), 100)
