"""The directory that a run owns: its `config.json`, its lock, and whole files or none."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dreamjax.config import CLASS, dumps, from_plain, leaves
from dreamjax.errors import FullDisk, UserError

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
UNFINISHED = ".{stem}.{pid}.part{suffix}"  # what a file is called until it is whole

# Locks of workdirs, by their files. They are the process's: the system lets go of them when it
# ends, however it ends.
_locks: dict[Path, FileLock] = {}


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path`, of the same suffix, to write to; then renames it to `path`.

    If the body raises, what was at `path` stays as it was and nothing is left beside it.
    Raises UserError where the file cannot be written.
    """
    path = Path(path)
    name = UNFINISHED.format(stem=path.stem, pid=os.getpid(), suffix=path.suffix)
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def cannot_write(path: str | Path, why: OSError | str) -> UserError:
    """The error for a file or folder that cannot be written; a FullDisk where no space is left."""
    text = why if isinstance(why, str) else why.strerror or str(why)
    signs = ("No space left", "RESOURCE_EXHAUSTED", "Disk quota exceeded")
    full = any(sign in text for sign in signs) or (
        isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT)
    )
    return (
        FullDisk(f"no space left to write {path}")
        if full
        else UserError(f"cannot write {path}: {' '.join(text.split())[:300]}")
    )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file at once, or leave what was there; raises UserError if it cannot."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file at once, or leave what was there; raises UserError if it cannot."""
    write_bytes(path, text.encode())


def stored_task(folder: str | Path) -> Any:
    """The task whose run lives in `folder`; raises UserError where there is none to be read."""
    path = Path(folder) / CONFIG_FILE
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {path}: {reason}") from error
    if isinstance(plain, dict) and CLASS not in plain:
        raise UserError(
            f"{path} was written by another version of dreamjax, or is none of its files: this "
            "version cannot go on with that run; start it again in a new workdir"
        )
    try:
        if not isinstance(plain, dict):
            raise UserError("it holds no JSON object")
        return from_plain(plain)
    except (UserError, RecursionError) as error:
        raise UserError(f"cannot use {path}: {error}") from error


def claim(workdir: str | Path, task: Any, harmless: tuple[str, ...] = ()) -> Path:
    """Claim `workdir` for the run of `task` and return it, with `config.json` in it.

    A new or empty directory is taken; one with an equal task is gone on with. Only the values at or
    below the paths in `harmless` may differ, and then `config.json` is brought up to date. No other
    process can claim it until this one ends or calls `release`. Raises UserError, with nothing
    touched, where the directory is another run's or another process's, holds something else, or
    cannot be written.
    """
    workdir = resolved(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        present = sorted(p.name for p in workdir.iterdir())
        if not os.access(workdir, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cannot_write(workdir, error) from error
        reason = error.strerror or error
        raise UserError(f"cannot use the workdir {_short(workdir)}: {reason}") from error
    stored = stored_task(workdir) if CONFIG_FILE in present else None
    if stored is None:
        if _is_home(workdir):
            raise UserError(f"the workdir is your home directory, {workdir}: name one of its own")
        if other := [name for name in present if _is_anothers(workdir / name)]:
            raise UserError(
                f"the workdir {workdir} holds {other[0]} but no {CONFIG_FILE} of a run: "
                "name a new or an empty directory"
            )
    else:
        check_same_run(workdir, stored, task, harmless)
    _lock(workdir)
    _sweep(workdir)
    if stored != task:
        write_text(workdir / CONFIG_FILE, dumps(task))
    return workdir


def _is_home(folder: Path) -> bool:
    """Whether a folder is the user's home, by the environment or by the system's own list."""
    homes = [os.path.expanduser("~")]
    with contextlib.suppress(ImportError, KeyError):
        import pwd  # not on Windows

        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return folder.resolve() in [Path(home).resolve() for home in homes]


def _is_anothers(path: Path) -> bool:
    """Whether something in a folder without a run is another's.

    Logs that the shell made (`2> workdir/log.txt`) and hidden files are nobody's loss.
    """
    if path.name.startswith("."):
        return path.is_dir()  # .git, .ssh
    return path.suffix not in (".txt", ".log")


def _sweep(workdir: Path) -> None:
    """Delete the unfinished files that a killed process left; the lock says that it has ended."""
    for path in workdir.glob(UNFINISHED.format(stem="*", pid="*", suffix="*")):
        with contextlib.suppress(OSError):
            path.unlink()


def resolved(path: str | Path) -> Path:
    """A path that a user typed, with `~` for a home; raises UserError where there is none."""
    try:
        if "\0" in str(path):
            raise ValueError("it has a null byte")
        path = Path(path).expanduser()
        path.exists()
    except (RuntimeError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot use the path {_short(path)}: {reason}") from error
    return path


def slug(prompt: str) -> str:
    """A prompt as part of a folder's name: letters and digits of the Latin alphabet, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-")


def _short(path: str | Path) -> str:
    text = str(path).replace("\0", "\\0")
    return text if len(text) <= 200 else f"{text[:80]}... ({len(text)} characters)"


def check_same_run(workdir: Path, stored: Any, task: Any, harmless: tuple[str, ...] = ()) -> None:
    """Raise UserError, naming what differs, unless `stored` and `task` are the same run."""
    there = {"class": type(stored).__qualname__} | leaves(stored)
    here = {"class": type(task).__qualname__} | leaves(task)
    differ = [
        key
        for key in sorted({*there, *here}, key=lambda key: (key != "prompt", key))
        if there.get(key, "absent") != here.get(key, "absent")
        and not any(key == h or key.startswith(h + ".") for h in harmless)
    ]
    if not differ and type(stored) is type(task):
        return
    key, more = (differ or ["class"])[0], differ[1:]
    raise UserError(
        f"the workdir {workdir} belongs to another run: {key} is "
        f"{there.get(key, 'absent')!r} there and {here.get(key, 'absent')!r} here"
        + (f" (also differing: {', '.join(more[:5])}{', ...' * (len(more) > 5)})" * bool(more))
        + "; name another --workdir"
    )


def _lock(workdir: Path) -> None:
    path = (workdir / LOCK_FILE).resolve()
    lock = _locks.setdefault(path, FileLock(path, blocking=False, thread_local=False))
    if lock.is_locked:  # claimed by an earlier run of this very process
        return
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is running in the workdir {workdir}: wait for its end, stop it, or "
            "name another --workdir"
        ) from error
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise cannot_write(path, error) from error


def release(workdir: str | Path) -> None:
    """Let other processes claim `workdir`; does nothing where this one has not."""
    lock = _locks.pop((Path(workdir).expanduser() / LOCK_FILE).resolve(), None)
    if lock is not None:
        lock.release()
