"""What a notebook or a program imports.

import dreamjax

obj = dreamjax.dream("a purple chair", steps=300)
obj.render(azimuth=45)
obj.save("chair.glb")

obj = dreamjax.load("runs/a-purple-chair")
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamjax.config import leaves, nearest, replaced
from dreamjax.errors import UserError
from dreamjax.export.object3d import Object3D
from dreamjax.main import load_config
from dreamjax.tasks.dream import Dream
from dreamjax.tasks.dream import load as load_run
from dreamjax.workdir import slug


def dream(
    prompt: str,
    *,
    config: str | Dream = "toybox",
    workdir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    **values: Any,
) -> Object3D:
    """Make an object of a sentence; a run that is there already is gone on with, or just read.

    Args:
        prompt: what to make.
        config: a config file, the name of one that ships, or a `Dream` without its prompt.
        workdir: where the run lives, by default `runs/` and the prompt's words.
        overrides: dotted paths to values, as {"objective.guidance_scale": 7.0}.
        **values: fields of `Dream`, as `steps=300` or `objective=Sds(draws=2)`.

    Raises UserError for anything that the command line would refuse too.
    """
    task = load_config(config) if isinstance(config, str) else config
    if not isinstance(task, Dream):
        raise UserError(f"{config} is a {type(task).__name__}, not a dream")
    fields = {f.name for f in dataclasses.fields(Dream)}
    for name in values:
        if name not in fields:
            raise UserError(f"a dream has no {name}{nearest(name, fields)}")
    task = dataclasses.replace(task, prompt=prompt, **values)
    known = leaves(task)
    for path in overrides or {}:
        if path not in known:
            raise UserError(f"a dream has no {path}{nearest(path, known)}")
    task = replaced(task, dict(overrides or {}))
    folder = Path(workdir) if workdir is not None else Path("runs") / (slug(prompt) or "prompt")
    task.run(folder)
    return load(folder)


def load(run: str | Path) -> Object3D:
    """The object of a finished run; raises UserError where there is none."""
    return load_run(run).object3d
