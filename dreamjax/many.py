"""Many dreams in one go: every line of a file in a folder of its own, and a page of them all."""

import dataclasses
import functools
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import jax

from dreamjax.errors import FullDisk, UserError
from dreamjax.export.index import Entry, State, summary, write_index
from dreamjax.export.report import duration
from dreamjax.training import hosts
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

    def run_all(self, jobs: "Iterator[Job]") -> None:
        """Make what each of the jobs says, as many at a time as suits it."""
        ...

    def is_complete(self, folder: Path) -> bool:
        """Whether a folder holds all that its run leaves behind."""
        ...


class Job:
    """One prompt of a file: its task, its folder, and what becomes of it."""

    def __init__(
        self, task: Any, folder: Path, note: Callable[[State, BaseException | None], None]
    ):
        """`note` is told each state, with the error where it failed."""
        self.task, self.folder, self._note = task, folder, note

    def begin(self) -> None:
        """Say that it is under way."""
        self._note("running", None)

    def end(self, error: BaseException | None) -> None:
        """Say that it is done, or what ended it, and let others have its folder."""
        release(self.folder)
        if error is None or isinstance(error, KeyboardInterrupt):
            self._note("stopped" if error else "done", None)
        else:
            self._note("failed", error)


def run_prompts(task: Prompted, workdir: str | Path, harmless: tuple[str, ...]) -> None:
    """Run `task` for each prompt of its file that is not finished, and keep `index.html` current.

    Folders lie in `workdir`, as `003-a-red-ball`; a prompt that has one keeps it, wherever the file
    names it by now. A failure is told, and the next prompt taken. `harmless` values may have
    changed since the last time, and the file too. Several processes share the prompts among them.
    Raises UserError for a file without prompts, and at the end where a prompt failed (FullDisk
    where a disk was full).
    """
    prompts = read_prompts(task.prompts)
    free = (*harmless, "prompts")
    workdir = Path(hosts.by_first(lambda: str(claim(workdir, task, free))))
    tasks = [dataclasses.replace(cast(Any, task), prompt=p, prompts="") for p in prompts]
    book = _Book(workdir, prompts, tasks, places(workdir, prompts, type(task)))
    hosts.gather(None)  # nobody makes a folder before all have seen which there are
    try:
        task.run_all(book.jobs())
    except KeyboardInterrupt:
        states = [entry.state for entry in book.entries]
        number = 1 + states.index("stopped" if "stopped" in states else "waiting")
        print(f"stopped at prompt {number} of {len(prompts)}; the same command goes on")
        raise
    entries = book.close()
    failed = [entry for entry in entries if entry.state == "failed"]
    if failed:
        kind = FullDisk if book.full else UserError
        raise kind(
            f"{len(failed)} of {len(entries)} prompts failed (the same command tries them again): "
            f"{failed[0].prompt!r}: {failed[0].message}"
        )


class _Book:
    """What has become of each prompt so far, and the page that shows it."""

    def __init__(self, workdir: Path, prompts: list[str], tasks: list[Any], folders: list[Path]):
        self._page, self._tasks = workdir / INDEX, tasks
        self._mine: set[int] = set()  # numbers of the prompts that this process has taken
        self._began: dict[int, float] = {}
        self._took: list[float] = []
        self._most = 1  # prompts that were under way at once
        self.full = False  # whether a disk was the reason of a failure
        self.entries = [
            Entry(prompt, place, "done" if own.is_complete(place) else "waiting", spent(place))
            for prompt, own, place in zip(prompts, tasks, folders, strict=True)
        ]

    def jobs(self) -> Iterator[Job]:
        """What is not done, in order; each prompt is one process's alone."""
        following = hosts.queue("prompts")
        while (number := following()) < len(self.entries):
            if self.entries[number].state != "done":
                self._mine.add(number)
                note = functools.partial(self._note, number)
                yield Job(self._tasks[number], self.entries[number].folder, note)

    def _note(self, number: int, state: State, error: BaseException | None) -> None:
        message = explained(error) if error else ""
        self.full = self.full or isinstance(error, FullDisk)
        entry, now = self.entries[number], time.monotonic()
        if state == "running":
            print(f"[{number + 1}/{len(self.entries)}] {entry.prompt} -> {entry.folder}", end="")
            print(self._guess(number), flush=True)
            self._began[number] = now
            self._most = max(self._most, len(self._began))
        else:
            began = self._began.pop(number, now)
            if state == "done":
                self._took.append(now - began)
        seconds = spent(entry.folder)
        self.entries[number] = dataclasses.replace(
            entry, state=state, message=message, seconds=seconds
        )
        self._write()

    def _guess(self, number: int) -> str:
        if not self._took:
            return ""
        left = sum(other.state == "waiting" for other in self.entries[number:])
        seconds = left * sum(self._took) / len(self._took) / self._most / hosts.count()
        return f" (about {duration(seconds)} left)"

    def _write(self) -> None:
        if hosts.is_first():
            write_index(self._page, self.entries)

    def close(self) -> list[Entry]:
        """Learn what has become of the other processes' prompts, and show it all."""
        mine = {n: (self.entries[n].state, self.entries[n].message) for n in self._mine}
        for theirs in hosts.gather([(number, *told) for number, told in mine.items()]):
            for number, state, message in theirs:
                entry = self.entries[number]
                self.entries[number] = dataclasses.replace(
                    entry, state=state, message=message, seconds=spent(entry.folder)
                )
        self._write()
        if hosts.is_first():
            print(table(self.entries))
            print(f"wrote {self._page}")
        return self.entries


def attempt(task: Prompted, folder: str | Path) -> str:
    """Run one task of several; returns what went wrong, also said on stderr, empty if nothing."""
    try:
        task.run(folder)
    except Exception as error:
        return explained(error)
    finally:
        release(folder)
        # jax.pmap's cache holds its programs for good: 130 MB a dream, and memory mappings of which
        # Linux grants a process enough for 25.
        jax.clear_caches()
    return ""


def explained(error: BaseException) -> str:
    """What went wrong in one line, also said on stderr, after the traceback of a defect."""
    message = " ".join(str(error).split())
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {message}"
    print(f"failed: {message}", file=sys.stderr, flush=True)
    return message


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
