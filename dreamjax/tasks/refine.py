"""A finished dream is made sharp: it goes on in large pictures, near its surface alone."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from dreamjax.clock import Clock, Ramp
from dreamjax.distill.step import DreamState, Trained
from dreamjax.errors import UserError
from dreamjax.export.base import Exporter
from dreamjax.export.glb import Glb
from dreamjax.export.mesh_sheet import MeshSheet
from dreamjax.export.report import Report
from dreamjax.export.textured_glb import TexturedGlb
from dreamjax.export.turntable import Turntable
from dreamjax.export.views import Views
from dreamjax.scene.fields.fixed_surface import FixedSurface
from dreamjax.settings import Home, Pixels, Range, is_settings, settings
from dreamjax.tasks.dream import BatchViews, Dream, load
from dreamjax.training.descent import Descent
from dreamjax.training.optimizer import Optimizer
from dreamjax.training.run import Run


@settings
class Refinement(Dream):
    """A dream that begins with the scene of a finished run; `Refine` makes it."""

    from_run: str = ""  # the folder of that run

    def begin(self, state: DreamState) -> DreamState:
        """The state before the first step: the other run's scene and front."""
        found = load(self.from_run)
        params = dict(found.state.scene.params)
        if isinstance(self.field, FixedSurface) and self.field != found.task.field:
            params["field"] = self.field.twice(params["field"])
        scene = Trained(params, self.optimizer.make(self.steps).init(params))
        return state._replace(scene=scene, front=found.state.front)


@settings
class Refine(Run):
    """Goes on with a finished run in large pictures, by its own prior and objective.

    What changes over a run stays where that one ended, but for the variance of the Gaussians that
    the field sees. What an objective trains beside the scene begins anew.
    """

    from_run: str = ""  # the folder of a finished run
    fixed: bool = True  # its surface stays bit for bit, colours alone are trained; false: both are
    size: Pixels = 512  # height and width of the renderings
    batch_views: BatchViews = 1  # views a step, over all devices
    samples: Annotated[int, Range(1, 1024)] = 8  # intervals of a ray, most of them at the surface
    cells: Annotated[int, Range(1, 256)] = 64  # a side of the grid that says where the surface is
    chunk: Annotated[int, Range(1, 10**6)] = 4096  # rays that go at a time, which memory grows with
    variance: Annotated[float | None, Range(0.0, 100.0)] = None
    """Of the Gaussians that the field sees, in squared scene units, from half of the run on, if
    the other run's was larger: how fine colours can be. None: 1e-4 where the surface is fixed, the
    other run's where it is not, as its shape hangs on it."""
    optimizer: Annotated[Optimizer | None, Home("dreamjax.training.optimizer")] = None
    """Of the scene; none: the other run's, at the rate that it ended with."""
    exports: Annotated[tuple[Exporter, ...], Home("dreamjax.export")] = (
        Views(256),
        Glb(),
        TexturedGlb(),
        MeshSheet(256),
        Turntable(size=256),
        Report(),
    )
    """what a finished run leaves behind"""

    def __post_init__(self):
        decay = getattr(self.optimizer, "weight_decay", 0.0)
        if self.fixed and decay:
            raise UserError(
                f"optimizer.weight_decay is {decay}: expected 0, as the surface is fixed (or set "
                "fixed=false)"
            )

    def run(self, workdir: str | Path) -> None:
        """Refine the run of `from_run` in `workdir`, and export it; goes on where it was stopped.

        The other run is read and left alone. Raises UserError, with nothing touched, where it is
        not there or not finished.
        """
        if not self.from_run:
            raise UserError(
                "from_run is empty: name the folder of a finished run, as "
                "--config.from_run=runs/a-red-ball"
            )
        self.of(load(self.from_run).task).run(workdir)

    def of(self, before: Dream) -> Refinement:
        """The dream that refines a finished one; raises UserError where its surface must stay."""
        ended: Any = at_end(before)
        values = {f.name: getattr(ended, f.name) for f in dataclasses.fields(Dream)}
        values |= {f.name: getattr(self, f.name) for f in dataclasses.fields(Run)}
        variance = float(ended.renderer.variance.end)
        finer = (1e-4 if self.fixed else variance) if self.variance is None else self.variance
        field = before.field
        if self.fixed and not isinstance(field, FixedSurface):
            field = FixedSurface(field, variance)
        if isinstance(field, FixedSurface) and not self.fixed:
            raise UserError(
                f"the surface of the run in {self.from_run} was fixed: refine the run that it "
                "began with, or leave it fixed"
            )
        renderer = dataclasses.replace(
            before.renderer,
            samples=self.samples,
            normal_samples=min(before.renderer.normal_samples, self.samples),
            cells=self.cells,
            chunk=self.chunk,
            variance=Ramp(variance, min(variance, finer), (0.0, 0.5)),
        )
        return Refinement(
            **values
            | {
                "from_run": self.from_run,
                "field": field,
                "renderer": renderer,
                "penalties": () if self.fixed else ended.penalties,  # all are about the surface
                "facing": None,  # it is known
                "phases": (dataclasses.replace(before.phases[-1], until=1.0, size=self.size),),
                "batch_views": self.batch_views,
                "optimizer": self.optimizer or self._resting(before.optimizer),
                "exports": self.exports,
            }
        )

    def _resting(self, optimizer: Optimizer) -> Optimizer:
        """An optimizer that keeps the rate that it ended with."""
        if not isinstance(optimizer, Descent):
            return optimizer
        rate = optimizer.final_learning_rate or optimizer.learning_rate
        decay = 0.0 if self.fixed else optimizer.weight_decay
        changes: dict[str, Any] = dict(
            learning_rate=rate, final_learning_rate=None, warmup=0.0, weight_decay=decay
        )
        return dataclasses.replace(optimizer, **changes)


def at_end(part: Any) -> Any:
    """A tree of settings in which all that changes over a run stays at its end."""
    if isinstance(part, Ramp):
        return Ramp.from_number(float(part(Clock(1, 1))))
    if isinstance(part, tuple):
        return tuple(map(at_end, part))
    if not is_settings(part):
        return part
    changes = {f.name: at_end(getattr(part, f.name)) for f in dataclasses.fields(part)}
    return dataclasses.replace(part, **changes)
