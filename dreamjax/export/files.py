"""Writing files so that nobody ever sees half of one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dreamjax.errors import UserError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path`, of the same suffix, to write to; then renames it to `path`.

    If the body raises, what was at `path` stays as it was and nothing is left beside it.
    Raises UserError where the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file at once, or leave what was there; raises UserError if it cannot."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
