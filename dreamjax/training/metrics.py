"""What a run shows: a progress bar, TensorBoard events, and its numbers as JSON lines.

Metrics are mappings from a name to a scalar (array or number). Reading one waits for the device, so
both writers take them only when they show or store them.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float

from dreamjax.workdir import write_text

LINE_SECONDS = 10.0  # between lines where the output is not a terminal
RATE_SECONDS = 60.0  # steps/s is taken over about this long


def scalars(metrics: Mapping[str, Any], names: tuple[str, ...] = ()) -> dict[str, float]:
    """Return `metrics` (or those among `names`) as floats; of a stack of steps, the last."""
    chosen = {n: metrics[n] for n in names if n in metrics} if names else metrics
    return {name: float(np.asarray(value).reshape(-1)[-1]) for name, value in chosen.items()}


def clock(seconds: float) -> str:
    """Return a duration as 1:05 or 2:01:05, and ? where it is not finite."""
    if not np.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """A bar with step, steps/s, time left and metrics; plain lines where there is no terminal."""

    def __init__(
        self,
        total: int,
        start: int = 0,
        show: tuple[str, ...] = ("loss", "opacity", "grad_norm"),
        stream: TextIO | None = None,
    ):
        """Begin at `start` finished steps of `total`, showing the metrics named in `show`."""
        self._total, self._show = total, show
        self._stream = stream or sys.stderr
        self._bar = None
        # Some terminals (in containers, under `script`) say that they have no columns.
        if self._stream.isatty() and os.get_terminal_size(self._stream.fileno()).columns > 0:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=start,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {desc}",
            )
        self._times = deque([(time.monotonic(), start)])
        self._shown = -np.inf  # when

    def compiling(self, step: int) -> None:
        """Say that what follows `step` is being compiled; that time is left out of the estimate."""
        self._times.clear()
        self._shown = -np.inf
        self._say(f"step {step}/{self._total}  compiling ...")

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Say that `step` steps are finished, with that step's metrics."""
        now = time.monotonic()
        every = 0.2 if self._bar is not None else LINE_SECONDS
        if now - self._shown < every and step < self._total and len(self._times) > 1:
            return
        # Reading the metrics waits for the step, so the clock is read after.
        values = scalars(metrics or {}, self._show)
        now = time.monotonic()
        self._times.append((now, step))
        while len(self._times) > 2 and now - self._times[1][0] > RATE_SECONDS:
            self._times.popleft()
        text = f"step {step}/{self._total}{self._rate(step)}"
        text += "".join(f"  {name} {value:.3g}" for name, value in values.items())
        skipped = scalars(metrics or {}, ("skipped",)).get("skipped", 0)
        text += f"  skipped {skipped:.0f}" if skipped else ""
        self._shown = now
        if self._bar is not None:
            self._bar.n = step
        self._say(text)

    def _rate(self, step: int) -> str:
        """Steps a second over the last minute and the time left; empty before there are two."""
        (then, first), (now, _) = self._times[0], self._times[-1]
        if step == first:
            return ""
        rate = (step - first) / max(now - then, 1e-9)
        return f"  {rate:.3g} steps/s  {clock((self._total - step) / rate)} left"

    def _say(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.set_description_str(text)

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self):
        """Return the bar; leaving the block closes it."""
        return self

    def __exit__(self, *_):
        """Leave the bar as it stands."""
        self.close()


class Log:
    """TensorBoard events under `workdir/events`, and the scalars in `workdir/metrics.jsonl`."""

    def __init__(self, workdir: str | Path, start: int = 0):
        """Go on from `start` finished steps: what a stopped run logged beyond is superseded."""
        from tensorboardX import SummaryWriter

        self._path = Path(workdir) / "metrics.jsonl"
        kept = [row for row in read_history(workdir) if row["step"] <= start]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._writer = SummaryWriter(
            str(Path(workdir) / "events"), purge_step=start + 1 if start else None
        )

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Store the metrics of one step."""
        # Neither TensorBoard's protocol nor JSON has a place for NaN: such a point is left out.
        values = {name: v for name, v in scalars(metrics).items() if np.isfinite(v)}
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": int(step), **values}) + "\n")

    def image(self, step: int, name: str, rgb: Float[np.ndarray, "height width 3"]) -> None:
        """Store a picture with values in [0, 1]."""
        pixels = np.clip(np.asarray(rgb, np.float32) * 255 + 0.5, 0, 255).astype(np.uint8)
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()


def read_history(workdir: str | Path) -> list[dict[str, float]]:
    """Return the scalars logged so far, a mapping a step with its `step`; empty where none are."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a line half-written when the run was stopped
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
