"""The progress line, and the numbers that a resumed run goes on with."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import FullDisk, UserError
from dreamjax.training import metrics
from dreamjax.training.metrics import Log, Progress, clock, read_history


class Clock:
    """A clock that goes on by hand."""

    now = 100.0

    def __call__(self):
        """Return the time."""
        return self.now


@pytest.fixture
def hand_clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(metrics.time, "monotonic", made)
    return made


def test_plain_lines_come_every_ten_seconds_and_at_the_end(hand_clock):
    out = io.StringIO()
    progress = Progress(100, start=40, stream=out)
    for step in range(41, 101):
        hand_clock.now += 0.5
        values = {"loss": jnp.float32(0.25), "opacity": 0.125, "other": 7.0, "skipped": 0}
        progress.update(step, values)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 41/100  2 steps/s  0:30 left  loss 0.25  opacity 0.125"
    assert [line.split()[1] for line in lines] == ["41/100", "61/100", "81/100", "100/100"]
    assert "0:00 left" in lines[-1]


def test_the_time_of_compiling_is_left_out_of_the_estimate(hand_clock):
    out = io.StringIO()
    progress = Progress(1000, stream=out)
    progress.compiling(0)
    hand_clock.now += 300
    progress.update(1, {"loss": 2.0})
    hand_clock.now += 1
    progress.update(2)
    assert out.getvalue().splitlines() == [
        "step 0/1000  compiling ...",
        "step 1/1000  loss 2",
        "step 2/1000  1 steps/s  16:38 left",
    ]
    for step in range(3, 600):
        hand_clock.now += 1
        progress.update(step)
    progress.compiling(600)  # a second program
    hand_clock.now += 500
    for step in range(601, 604):
        progress.update(step)
        hand_clock.now += 2
    assert out.getvalue().splitlines()[-3:] == [
        "step 600/1000  compiling ...",
        "step 601/1000",
        "step 602/1000  0.5 steps/s  13:16 left",
    ]


def test_skipped_steps_are_shown_and_stacks_give_their_last(hand_clock):
    out = io.StringIO()
    Progress(10, stream=out).update(3, {"loss": np.array([3.0, 2.0]), "skipped": np.array([0, 2])})
    assert out.getvalue().endswith("loss 2  skipped 2\n")


def test_durations():
    assert [clock(s) for s in (0, 65, 3600 * 2 + 61, np.inf)] == ["0:00", "1:05", "2:01:01", "?"]


def test_a_resumed_log_drops_what_comes_after_its_start(tmp_path):
    log = Log(tmp_path)
    for step in (10, 20, 30):
        log.scalars(step, {"loss": jnp.float32(step / 2), "bad": float("nan")})
    log.image(30, "views", np.full((4, 6, 3), 0.5))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('[]\nnull\n7\n{"loss": 1.0}\n')  # nobody's rows
        for step in ('"20"', "true", "-1", "1.5", "NaN", "1" * 5000, "9" * 30, "null", "[20]"):
            file.write(f'{{"step": {step}, "loss": 7.0}}\n')
        file.write("[" * 100_000 + "\n")
        rest = '"loss": NaN, "seconds": Infinity, "a": "b", "c": null, "d": [1], "e": true'
        file.write(f'{{"step": 21, {rest}, "f": 1{"0" * 400}, "g": 2}}\n')
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"step": 22}\n')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a write that was cut off
    assert read_history(tmp_path)[3:] == [{"step": 21, "g": 2}]
    log = Log(tmp_path, start=20)
    log.scalars(25, {"loss": 1.0})
    log.close()
    assert read_history(tmp_path) == [
        {"step": 10, "loss": 5.0},
        {"step": 20, "loss": 10.0},
        {"step": 25, "loss": 1.0},
    ]
    assert list((tmp_path / "events").iterdir())


def test_files_that_cannot_be_are_told(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot read .*metrics.jsonl: Is a directory"):
        read_history(tmp_path)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "events").write_text("mine")
    with pytest.raises(UserError, match="cannot write .*events"):
        Log(tmp_path)


def test_a_log_that_cannot_be_written_is_told_and_closes(tmp_path):
    log = Log(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(FullDisk, match="no space left to write .*metrics.jsonl"):
        log.scalars(1, {"loss": 1.0})
    log.close()


def test_events_can_be_read_back(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = Log(tmp_path)
    log.scalars(7, {"loss": 0.5})
    log.close()
    data = next((tmp_path / "events").iterdir()).read_bytes()
    found = []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    assert found == [(7, "loss", 0.5)]
