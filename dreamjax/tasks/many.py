"""`--config.prompts=FILE`: many dreams in one go, every line of a file in a folder of its own."""

import dataclasses
import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from dreamjax.config import CONFIG_FILE, check_workdir, release_workdir, to_plain
from dreamjax.errors import UserError
from dreamjax.export.index import Entry, summary, write_index
from dreamjax.export.report import duration
from dreamjax.training.loop import spent

INDEX = "index.html"


def run_prompts(config, workdir: str | Path, dream: Callable, harmless: tuple[str, ...]) -> None:
    """Call `dream(config, folder)` for each prompt of the file `config.prompts` that has no mesh.

    Folders lie in `workdir`, as `003-a-red-ball`; a prompt that has one keeps it, wherever the
    file names it by now. A failure is told, and the next prompt taken; `index.html` shows how far
    things are. `harmless` keys of the config may have changed since the last time, and the file
    too. Raises UserError for a file without prompts, and at the end where a prompt failed.
    """
    settings = to_plain(config)
    file, prompt = settings.pop("prompts"), settings["prompt"]
    if prompt:
        raise UserError(f"prompt is {prompt!r} and prompts is {file!r}: give one of them")
    prompts = read_prompts(file)
    workdir = check_workdir(workdir, config, harmless=(*harmless, "prompts"))
    entries = []
    for prompt, place in zip(prompts, places(workdir, prompts), strict=True):
        state = "done" if finished(place, {**settings, "prompt": prompt}) else "waiting"
        entries.append(Entry(prompt, place, state, spent(place)))
    took = []
    for number, entry in enumerate(entries):
        if entry.state == "done":
            continue
        left = sum(other.state == "waiting" for other in entries[number:])
        guess = f" (about {duration(left * sum(took) / len(took))} left)" if took else ""
        print(f"[{number + 1}/{len(entries)}] {entry.prompt} -> {entry.folder}{guess}", flush=True)
        _tell(workdir, entries, number, "running")
        began = time.monotonic()
        try:
            message = attempt(dream, {**settings, "prompt": entry.prompt}, entry.folder)
        except KeyboardInterrupt:
            _tell(workdir, entries, number, "stopped")
            print(f"stopped at prompt {number + 1} of {len(entries)}; the same command goes on")
            raise
        _tell(workdir, entries, number, "failed" if message else "done", message)
        if not message:
            took.append(time.monotonic() - began)
    write_index(workdir / INDEX, entries)
    print(table(entries))
    print(f"wrote {workdir / INDEX}")
    failed = [entry for entry in entries if entry.state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(entries)} prompts failed (the same command tries them again): "
            f"{failed[0].prompt!r}: {failed[0].message}"
        )


def attempt(dream: Callable, config: dict, folder: str | Path) -> str:
    """Make one dream of several; returns what went wrong, also said on stderr, empty if nothing."""
    try:
        dream(config, folder)
    except UserError as error:
        message = " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        message = " ".join(f"{type(error).__name__}: {error}".split())
    else:
        return ""
    finally:
        release_workdir(folder)
        # jax.pmap's cache holds its programs for good: 130 MB a dream, and memory mappings of which
        # Linux grants a process enough for 25.
        jax.clear_caches()
    print(f"failed: {message}", file=sys.stderr, flush=True)
    return message


def _tell(workdir: Path, entries: list[Entry], number: int, state: str, message: str = "") -> None:
    """Change one entry, and the page."""
    entry = entries[number]
    seconds = spent(entry.folder)
    entries[number] = dataclasses.replace(entry, state=state, message=message, seconds=seconds)
    write_index(workdir / INDEX, entries)


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that begin with # are none.

    Raises UserError for a file that cannot be read, holds none, or holds one twice.
    """
    try:
        text = Path(path).expanduser().read_text("utf-8-sig")
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


def slug(prompt: str) -> str:
    """A prompt as part of a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-")


def places(workdir: Path, prompts: Sequence[str]) -> list[Path]:
    """The folder of each prompt: the one that it has, or a new one named by number and words."""
    taken = prompts_of(workdir)
    known = {prompt: place for place, prompt in taken.items()}
    for number, prompt in enumerate(prompts, 1):
        if prompt not in known:
            names = (f"{n:03d}-{slug(prompt)}".strip("-") for n in itertools.count(number))
            known[prompt] = next(p for p in map(workdir.joinpath, names) if p not in taken)
            taken[known[prompt]] = prompt
    return [known[prompt] for prompt in prompts]


def prompts_of(folder: Path) -> dict[Path, str]:
    """The runs of `task = dream` in a folder, by name, with their prompts."""
    found = {}
    for path in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"cannot read {path}: {error}") from error
        if settings.get("task") == "dream":
            found[path.parent] = settings["prompt"]
    return found


def finished(place: Path, settings: dict) -> bool:
    """Whether `place` holds what the run of these settings leaves behind, its mesh included."""
    path = place / CONFIG_FILE
    return (
        path.exists()
        and json.loads(path.read_text()) == settings
        and all((place / name).exists() for name in ("report.html", "mesh.glb"))
    )


def table(entries: Sequence[Entry]) -> str:
    """What became of each prompt, as lines for a terminal."""
    head = ("prompt", "state", "training", "where")
    rows = [(e.prompt, e.state, duration(e.seconds), str(e.folder)) for e in entries]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    return "\n".join(["", *lines, summary(entries)])
