"""How much memory there is, so that what cannot be had is refused before work is put into it."""

import contextlib
from pathlib import Path

from dreamjax.errors import UserError

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of a container (cgroup v2)


def available() -> float:
    """Bytes that this process can still get; infinite where the system does not say."""
    limits = [float("inf")]
    with contextlib.suppress(OSError, ValueError, LookupError):
        limits.append(_table(MEMINFO)["MemAvailable"] * 1024)
    with contextlib.suppress(OSError, ValueError, LookupError):
        limit = int((GROUP / "memory.max").read_text())  # "max" is no number: no limit
        used = int((GROUP / "memory.current").read_text())
        limits.append(limit - used + _table(GROUP / "memory.stat")["file"])  # caches give way
    with contextlib.suppress(ImportError, OSError, ValueError, LookupError):
        import resource  # not on Windows

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            limits.append(limit - _table(Path("/proc/self/status"))["VmSize"] * 1024)
    return min(limits)


def need(count: float, what: str, instead: str) -> None:
    """Raise UserError where there are not `count` bytes; `instead` says what would need less."""
    there = available()
    if count > there:
        raise UserError(
            f"{what} needs about {count / 1e9:.1f} GB of memory and there are "
            f"{max(there, 0.0) / 1e9:.1f}: {instead}"
        )


def _table(path: Path) -> dict[str, int]:
    """Lines such as "VmSize: 12 kB" as numbers by their names."""
    words = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in words if len(row) > 1 and row[1].isdigit()}
