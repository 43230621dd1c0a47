"""`report.html`: one page about one run that loads nothing from anywhere."""

import base64
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.export.object3d import Object3D
from dreamjax.settings import settings
from dreamjax.workdir import write_text

EMBED_BYTES = 100_000_000  # larger files stay outside: no browser would open the page
_CURVE_POINTS = 400
_CURVE_SIZE = (340, 130)


@settings
class Report:
    """`report.html`: the mesh to turn, video, views, curves and settings on one page.

    It embeds what the other exporters have left in the folder.
    """

    curves: tuple[str, ...] = ("opacity", "grad_norm", "residual_norm")
    """The logged metrics that are drawn."""

    gathers = True

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the page and return its path; raises UserError if it cannot be written."""
        record, path = result.record, Path(folder) / "report.html"
        mesh = None if result.no_mesh else _there(folder, "mesh.glb")
        page = Page(
            prompt=result.prompt,
            seconds=record.seconds,
            settings=record.settings,
            steps=[int(row["step"]) for row in record.history],
            curves={
                name: [row.get(name, math.nan) for row in record.history] for name in self.curves
            },
            facts=record.facts,
            mesh=mesh,
            turntable=_there(folder, "turntable.mp4"),
            views=_there(folder, "views.png"),
            missing=_missing(result, folder),
        )
        write_text(path, page_html(page))
        return [path]


def _there(folder: Path, name: str) -> Path | None:
    """The file in the folder, if it is there and small enough for a page."""
    path = Path(folder) / name
    return path if path.is_file() and path.stat().st_size <= EMBED_BYTES else None


def _missing(result: Object3D, folder: Path) -> str:
    """Why the page shows no mesh."""
    if not result.no_mesh and (Path(folder) / "mesh.glb").is_file():
        return f"mesh.glb is larger than {EMBED_BYTES // 10**6} MB: open the file itself"
    return result.no_mesh or "no mesh was exported"


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page shows.

    `settings` may nest; `curves` maps a name to one value a step of `steps`; `facts` are further
    lines of the summary. `mesh` (a GLB file of `export.mesh`), `turntable` (mp4) and `views` (PNG)
    are files to embed, None where a run has none; `missing` says why there is no mesh.
    """

    prompt: str
    seconds: float
    settings: Mapping[str, object]
    steps: Sequence[int] = ()
    curves: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    mesh: Path | None = None
    turntable: Path | None = None
    views: Path | None = None
    missing: str = ""


def page_html(page: Page) -> str:
    """The page: everything embedded, all text escaped, any other source forbidden by policy."""
    script = resources.files("dreamjax.export").joinpath("viewer.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    facts = {"time": duration(page.seconds), **page.facts}
    summary = " · ".join(f"{escape(str(k))}: {escape(str(v))}" for k, v in facts.items())
    curves = "".join(_curve(n, page.steps, v) for n, v in page.curves.items() if len(v))
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in flatten(page.settings).items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.prompt)} – dreamjax</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(page.prompt)}</h1><p>{summary}</p></header>
<section class="pair">
{_mesh(page)}
{_turntable(page)}
</section>
{_views(page)}
{f'<section><h2>The run</h2><div class="curves">{curves}</div></section>' if curves else ""}
{_HOW_TO_OPEN if page.mesh else ""}
<section><details><summary>Settings</summary><table>{rows}</table></details></section>
{f"<script>{script}</script>" if page.mesh else ""}
</body>
</html>
"""


def duration(seconds: float) -> str:
    """A time span in words that a person reads: "42 s", "7 min 5 s", "1 h 30 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def flatten(settings: Mapping[Any, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings, and lists of them, as one level of dotted names.

    A mapping in a list is named by its place: {"a": [{"b": 1}]} is {"a.0.b": 1}. Other lists are
    values.
    """
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _data_url(kind: str, path: Path) -> str:
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def _mesh(page: Page) -> str:
    if page.mesh is None:
        return f'<figure><div class="none">{escape(page.missing or "no mesh")}</div></figure>'
    return f"""<figure>
<canvas id="mesh-view" tabindex="0" aria-label="the mesh; drag to turn it"></canvas>
<figcaption>
<span id="mesh-status">The mesh: drag to turn, scroll to zoom, double-click to reset.</span>
<label><input type="checkbox" id="mesh-colored" checked> colour</label>
<a id="mesh-file" download="{escape(Path(page.mesh).name)}" \
href="{_data_url("model/gltf-binary", page.mesh)}">save {escape(Path(page.mesh).name)}</a>
</figcaption></figure>"""


def _turntable(page: Page) -> str:
    if page.turntable is None:
        return ""
    source = _data_url("video/mp4", page.turntable)
    return f"""<figure>
<video autoplay loop muted playsinline controls src="{source}"></video>
<figcaption>The field as rendered, once around.</figcaption></figure>"""


def _views(page: Page) -> str:
    if page.views is None:
        return ""
    return f"""<section><h2>Views of the field</h2>
<img class="views" alt="colour, normals, depth and opacity from all sides" \
src="{_data_url("image/png", page.views)}"></section>"""


def _curve(
    name: str, steps: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray
) -> str:
    """One curve as an inline drawing; logarithmic where the values span more than two decades."""
    points = [(s, float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not points:
        return ""
    stride = -(-len(points) // _CURVE_POINTS)
    points = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
    low, high = min(v for _, v in points), max(v for _, v in points)
    logarithmic = low > 0.0 and high > 100.0 * low
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    first, last = points[0][0], points[-1][0]
    width, height = _CURVE_SIZE

    def place(step: float, value: float) -> str:
        x = (step - first) / max(last - first, 1) * width
        # A constant runs through the middle.
        y = (scale(value) - bottom) / (top - bottom) if top > bottom else 0.5
        return f"{x:.1f},{height * (1.0 - y):.1f}"

    line = " ".join(place(*point) for point in points)
    kind = " (logarithmic)" if logarithmic else ""
    return f"""<figure class="curve">
<figcaption>{escape(name)}{kind}: {points[-1][1]:.3g} at the end</figcaption>
<svg viewBox="-60 -8 {width + 68} {height + 30}" role="img" aria-label="{escape(name)} by step">
<rect width="{width}" height="{height}"/>
<polyline points="{line}"/>
<text x="-4" y="10" text-anchor="end">{high:.3g}</text>
<text x="-4" y="{height}" text-anchor="end">{low:.3g}</text>
<text x="0" y="{height + 16}">{first}</text>
<text x="{width}" y="{height + 16}" text-anchor="end">step {last}</text>
</svg></figure>"""


_HOW_TO_OPEN = """<section><h2>Taking the mesh elsewhere</h2>
<p>Blender: File › Import › glTF 2.0, choose <code>mesh.glb</code>; the object stands upright and
faces the front view. To see its colours without rendering, set Viewport Shading (the arrow at the
top right) to Solid with Color: Attribute. If a render comes out grey, add a Color Attribute node
and connect it to Base Color. Windows' 3D Viewer, three.js, Godot and other glTF viewers open the
file as it is.</p></section>"""

_STYLE = """
:root { color-scheme: light dark;
  --ink: #222; --paper: #fff; --panel: #f1f1ef; --soft: #666; --line: #36c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --paper: #191918; --panel: #262624; --soft: #a0a09c; --line: #7fb2ff }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.8rem; margin: 0; overflow-wrap: anywhere }
h2, summary { font-size: 1.1rem; font-weight: bold; margin: 2rem 0 .5rem }
header p, figcaption { color: var(--soft); font-size: .9rem; margin: .3rem 0 }
a { color: var(--line) }
figure { margin: 0 }
figcaption > * { margin-right: 1rem }
.pair, .curves { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)) }
.pair canvas, .pair video, .none { width: 100%; aspect-ratio: 1; background: var(--panel);
  border-radius: .5rem; display: block; object-fit: contain }
.pair canvas { touch-action: none; cursor: grab }
.none { display: grid; place-items: center; padding: 2rem; box-sizing: border-box }
.views { width: 100%; border-radius: .5rem }
.curve svg { width: 100% }
.curve rect { fill: var(--panel) }
.curve polyline { fill: none; stroke: var(--line); stroke-width: 1.5; stroke-linejoin: round }
.curve text { fill: var(--soft); font-size: 11px }
table { border-collapse: collapse; font: .85rem/1.5 ui-monospace, monospace }
th { text-align: left; font-weight: normal; color: var(--soft); padding-right: 2rem }
td { overflow-wrap: anywhere }
summary { cursor: pointer }
"""
