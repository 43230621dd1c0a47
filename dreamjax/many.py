"""Many dreams in one go: every line of a file in a folder of its own, and a page of them all."""

import dataclasses
import itertools
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import jax

from dreamjax.errors import UserError
from dreamjax.export.index import Entry, summary, write_index
from dreamjax.export.report import duration
from dreamjax.training.loop import spent
from dreamjax.workdir import CONFIG_FILE, claim, release, resolved, slug, stored_task

INDEX = "index.html"


class Prompted(Protocol):
    """A task that makes something of a `prompt`, or of all those of the file `prompts`."""

    @property
    def prompt(self) -> str:
        """What to make."""
        ...

    @property
    def prompts(self) -> str:
        """A file with one prompt a line."""
        ...

    def run(self, workdir: str | Path) -> None:
        """Make it, in a folder."""
        ...

    def is_complete(self, folder: Path) -> bool:
        """Whether a folder holds all that its run leaves behind."""
        ...


def run_prompts(task: Prompted, workdir: str | Path, harmless: tuple[str, ...]) -> None:
    """Run `task` for each prompt of its file that is not finished, and keep `index.html` current.

    Folders lie in `workdir`, as `003-a-red-ball`; a prompt that has one keeps it, wherever the file
    names it by now. A failure is told, and the next prompt taken. `harmless` values may have
    changed since the last time, and the file too. Raises UserError for a file without prompts, and
    at the end where a prompt failed.
    """
    prompts = read_prompts(task.prompts)
    workdir = claim(workdir, task, (*harmless, "prompts"))
    entries, tasks = [], []
    for prompt, place in zip(prompts, places(workdir, prompts, type(task)), strict=True):
        tasks.append(dataclasses.replace(cast(Any, task), prompt=prompt, prompts=""))
        state = "done" if tasks[-1].is_complete(place) else "waiting"
        entries.append(Entry(prompt, place, state, spent(place)))
    _run_all(workdir, entries, tasks)
    write_index(workdir / INDEX, entries)
    print(table(entries))
    print(f"wrote {workdir / INDEX}")
    failed = [entry for entry in entries if entry.state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(entries)} prompts failed (the same command tries them again): "
            f"{failed[0].prompt!r}: {failed[0].message}"
        )


def _run_all(workdir: Path, entries: list[Entry], tasks: list[Prompted]) -> None:
    took: list[float] = []
    for number, entry in enumerate(entries):
        if entry.state == "done":
            continue
        left = sum(other.state == "waiting" for other in entries[number:])
        guess = f" (about {duration(left * sum(took) / len(took))} left)" if took else ""
        print(f"[{number + 1}/{len(entries)}] {entry.prompt} -> {entry.folder}{guess}", flush=True)
        _note(workdir, entries, number, "running")
        began = time.monotonic()
        try:
            message = attempt(tasks[number], entry.folder)
        except KeyboardInterrupt:
            _note(workdir, entries, number, "stopped")
            print(f"stopped at prompt {number + 1} of {len(entries)}; the same command goes on")
            raise
        _note(workdir, entries, number, "failed" if message else "done", message)
        if not message:
            took.append(time.monotonic() - began)


def attempt(task: Prompted, folder: str | Path) -> str:
    """Run one task of several; returns what went wrong, also said on stderr, empty if nothing."""
    try:
        task.run(folder)
    except UserError as error:
        message = " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        message = " ".join(f"{type(error).__name__}: {error}".split())
    else:
        return ""
    finally:
        release(folder)
        # jax.pmap's cache holds its programs for good: 130 MB a dream, and memory mappings of which
        # Linux grants a process enough for 25.
        jax.clear_caches()
    print(f"failed: {message}", file=sys.stderr, flush=True)
    return message


def _note(workdir: Path, entries: list[Entry], number: int, state: str, message: str = "") -> None:
    """Change one entry, and the page."""
    entry = entries[number]
    seconds = spent(entry.folder)
    entries[number] = dataclasses.replace(entry, state=state, message=message, seconds=seconds)
    write_index(workdir / INDEX, entries)


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that begin with # are none.

    Raises UserError for a file that cannot be read, holds none, or holds one twice.
    """
    if not path:
        raise UserError("prompts is empty: name a file with one prompt a line")
    try:
        text = resolved(path).read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read prompts, {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read prompts, {path}: it is no UTF-8 text") from error
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        prompt = " ".join(line.split())
        if not prompt or prompt.startswith("#"):
            continue
        if prompt in lines:
            raise UserError(f"{path}: line {number} repeats line {lines[prompt]}: {prompt}")
        lines[prompt] = number
    if not lines:
        raise UserError(f"{path} holds no prompts: expected one a line")
    return list(lines)


def places(workdir: Path, prompts: Sequence[str], kind: type) -> list[Path]:
    """The folder of each prompt: the one that it has, or a new one named by number and words."""
    taken = prompts_of(workdir, kind)
    known = {prompt: place for place, prompt in taken.items()}
    for number, prompt in enumerate(prompts, 1):
        if prompt not in known:
            names = (f"{n:03d}-{slug(prompt)}".strip("-") for n in itertools.count(number))
            known[prompt] = next(p for p in map(workdir.joinpath, names) if p not in taken)
            taken[known[prompt]] = prompt
    return [known[prompt] for prompt in prompts]


def prompts_of(folder: Path, kind: type) -> dict[Path, str]:
    """The runs of tasks of a kind in a folder's subfolders, by name, with their prompts."""
    found = {}
    for path in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        task = stored_task(path.parent)
        if isinstance(task, kind):
            found[path.parent] = task.prompt
    return found


def table(entries: Sequence[Entry]) -> str:
    """What became of each prompt, as lines for a terminal."""
    head = ("prompt", "state", "training", "where")
    rows = [(e.prompt, e.state, duration(e.seconds), str(e.folder)) for e in entries]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    return "\n".join(["", *lines, summary(entries)])
