"""What a run shows: a progress bar, TensorBoard events, and its numbers as JSON lines.

Metrics are mappings from a name to a scalar (array or number). Reading one waits for the device, so
both writers take them only when they show or store them.
"""

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
from jaxtyping import Float

from dreamjax.errors import UserError
from dreamjax.workdir import cannot_write, write_text

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
        shown: bool = True,
    ):
        """Begin at `start` finished steps of `total`, showing the metrics named in `show`."""
        self._total, self._show = total, show
        self._stream = stream or sys.stderr
        self._bar, self._quiet = None, not shown
        # Some terminals (in containers, under `script`) say that they have no columns.
        terminal = shown and self._stream.isatty()
        if terminal and os.get_terminal_size(self._stream.fileno()).columns > 0:
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
        if self._quiet:
            return
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
        if self._quiet:
            return
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.set_description_str(text)

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if self._quiet:
            return
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

    def __init__(self, workdir: str | Path, start: int = 0, writes: bool = True):
        """Go on from `start` finished steps: what a stopped run logged beyond is superseded.

        What it `writes` not, another process does.
        """
        self._writer = None
        if not writes:
            return
        # Its usual writer has a thread of its own, from which a full disk cannot be told.
        from tensorboardX.event_file_writer import EventsWriter

        self._path = Path(workdir) / "metrics.jsonl"
        kept = [row for row in read_history(workdir) if row["step"] <= start]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        events = Path(workdir) / "events"
        try:
            events.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(events / "events"))
        except OSError as error:
            raise cannot_write(events, error) from error
        if start:  # TensorBoard drops what is logged from this step on
            event = _event(start + 1)
            event.session_log.status = event.session_log.START
            self._write(event)

    def _write(self, event: Any) -> None:
        assert self._writer is not None
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            raise cannot_write(self._path.with_name("events"), error) from error

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Store the metrics of one step."""
        if self._writer is None:
            return
        # Neither TensorBoard's protocol nor JSON has a place for NaN: such a point is left out.
        values = {name: v for name, v in scalars(metrics).items() if np.isfinite(v)}
        event = _event(step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._write(event)
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": int(step), **values}) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def image(self, step: int, name: str, rgb: Float[np.ndarray, "height width 3"]) -> None:
        """Store a picture with values in [0, 1]."""
        if self._writer is None:
            return
        from tensorboardX.summary import image

        pixels = np.clip(np.asarray(rgb, np.float32) * 255 + 0.5, 0, 255).astype(np.uint8)
        event = _event(step)
        event.summary.CopyFrom(image(name, pixels, dataformats="HWC"))
        self._write(event)

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            # What could be written is; this must not take the place of what went wrong before.
            with contextlib.suppress(OSError):
                self._writer.close()


def _event(step: int) -> Any:
    """An empty event of TensorBoard's."""
    from tensorboardX.proto import event_pb2

    protocol: Any = event_pb2  # its names are made at run time
    return protocol.Event(step=int(step), wall_time=time.time())


def read_history(workdir: str | Path) -> list[dict[str, float]]:
    """Return the scalars logged so far, a mapping a step with its `step`; empty where none are.

    What is no number, or no row of a step, is left out, as a line is that was half-written when the
    run was stopped. Raises UserError where the file cannot be read.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**63:
            rows.append({name: value for name, value in row.items() if _is_number(value)})
    return rows


def _is_number(value: object) -> bool:
    try:
        return type(value) in (int, float) and bool(np.isfinite(float(cast(float, value))))
    except OverflowError:  # a whole number that no float can hold
        return False
