"""The tasks, one file each with `run(config, workdir)`; `--config.task` names the file."""

import importlib
import pkgutil
from types import ModuleType

from dreamjax.config import nearest
from dreamjax.errors import UserError


def load(name: str) -> ModuleType:
    """Import and return the task `name`; raises UserError for one that is not there."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    module = importlib.import_module(f"{__name__}.{name}") if name in names else None
    if not hasattr(module, "run"):
        raise UserError(f"unknown task {name!r}{nearest(str(name), names)}")
    return module
