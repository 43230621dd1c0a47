"""Exporters: each writes one kind of file about a finished object.

A new exporter is a settings class in a file of this package, or anywhere, with the one method of
`Exporter`. Three attributes are looked for and need not be there: `doing` is said before it begins
(once, if several exporters say the same); an exporter with a true `last` runs after the others;
one with a true `gathers` embeds the others' files, so it runs before those and once more after
them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dreamjax.config import part_names
from dreamjax.errors import FullDisk, UserError
from dreamjax.export.object3d import Object3D
from dreamjax.workdir import resolved, write_text

MANIFEST = "manifest.json"


class Exporter(Protocol):
    """What `export_all` runs: a frozen dataclass whose fields are its settings."""

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write files into `folder`, whole or not at all, and return their paths.

        Raises UserError for what a user can cause.
        """
        ...


def print_line(text: str) -> None:
    """Print a line at once, also where stdout is a file."""
    print(text, flush=True)


def export_all(
    result: Object3D,
    exporters: Sequence[Exporter],
    folder: str | Path,
    say: Callable[[str], object] = print_line,
) -> None:
    """Run every exporter, whatever becomes of the others, and write `manifest.json`.

    The manifest has, by the exporters' names (`config.part_names`), the `files` that each wrote, as
    paths in `folder`, and the `error` of one that failed; and the settings of `result.record`, with
    which all of that was made. It is written at the very end. `say` gets what is being done and
    what was written, line by line. Raises the first error, as a UserError unless it is a defect of
    the code.
    """
    folder, exporters = resolved(folder), tuple(exporters)
    entries: dict[str, dict] = {}
    errors: dict[str, Exception] = {}
    said = {""}
    for name, exporter in _order(exporters):
        errors.pop(name, None)
        doing = getattr(exporter, "doing", "")
        if doing not in said:
            say(f"{doing} ...")
            said.add(doing)
        try:
            files = [Path(path) for path in exporter(result, folder)]
        except Exception as error:
            errors[name] = error
            entries[name] = {"files": [], "error": _line(error)}
            say(f"{name} failed: {_line(error)}")
        else:
            entries[name] = {"files": [_inside(path, folder) for path in files]}
            for path in files:
                say(f"wrote {path}")
    manifest = {"prompt": result.prompt, "exports": entries, "settings": result.record.settings}
    text = json.dumps(manifest, indent=2, ensure_ascii=False, default=_plain)
    write_text(folder / MANIFEST, text + "\n")
    if errors:
        _raise(errors)


def _order(exporters: tuple[Exporter, ...]) -> list[tuple[str, Exporter]]:
    """Exporters with their names, as they run."""
    named = list(zip(part_names(exporters), exporters, strict=True))
    last = [pair for pair in named if getattr(pair[1], "last", False)]
    gathering = [pair for pair in named if getattr(pair[1], "gathers", False)]
    first = [pair for pair in named if pair not in last and pair not in gathering]
    return first + gathering + (last + gathering if last else [])


def _plain(value: object) -> object:
    """What JSON has no word for: other mappings as its own, all else as text."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def _raise(errors: dict[str, Exception]) -> None:
    # A defect of the code goes first, so that its traceback is seen.
    first = next((e for e in errors.values() if not _is_expected(e)), None)
    if first is not None:
        raise first
    first = next(iter(errors.values()))
    kind = FullDisk if isinstance(first, FullDisk) else UserError
    raise kind(f"{', '.join(errors)} failed: {_line(first)}") from first


def _is_expected(error: Exception) -> bool:
    """Whether it is no defect of the code; XLA has no class of its own for too little memory."""
    return isinstance(error, UserError | OSError | MemoryError) or str(error).startswith(
        "RESOURCE_EXHAUSTED"
    )


def _line(error: Exception) -> str:
    """An error as one line; those that are not worded for the user with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
