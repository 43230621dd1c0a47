"""`index.html`: one page about many runs, which links to what lies in their folders."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from dreamjax.export.report import duration
from dreamjax.workdir import write_text

State = Literal["done", "failed", "running", "stopped", "waiting"]
STATES: tuple[State, ...] = get_args(State)
_LINKS = {"report.html": "report", "mesh.glb": "mesh", "turntable.mp4": "turntable"}
_RELOAD_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run: its `folder` need not exist yet, `seconds` of work so far, why it failed."""

    prompt: str
    folder: Path
    state: State = "waiting"
    seconds: float = 0.0
    message: str = ""


def write_index(path: str | Path, entries: Sequence[Entry]) -> None:
    """Write the page, whole or not at all; raises UserError if it cannot."""
    write_text(path, index_html(entries, Path(path).parent))


def index_html(entries: Sequence[Entry], home: Path) -> str:
    """The page as it is to lie in `home`: no script, all text escaped, links relative.

    It shows what is in the runs' folders now, and reloads itself while one is running.
    """
    running = any(entry.state == "running" for entry in entries)
    reload = f'<meta http-equiv="refresh" content="{_RELOAD_SECONDS}">' if running else ""
    cards = "\n".join(_card(number, entry, home) for number, entry in enumerate(entries, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="script-src 'none'; object-src 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
{reload}
<title>{summary(entries)} – dreamjax</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Prompts: {summary(entries)}</h1>
{cards}
</body>
</html>
"""


def summary(entries: Sequence[Entry]) -> str:
    """How many are in which state: "3 done, 1 failed"."""
    count = Counter(entry.state for entry in entries)
    return ", ".join(f"{count[state]} {state}" for state in STATES if count[state])


def _card(number: int, entry: Entry, home: Path) -> str:
    place = quote(os.path.relpath(entry.folder, home))
    there = {path.name for path in entry.folder.iterdir()} if entry.folder.is_dir() else set()
    # The mesh's picture comes last: until then, and where there is none, the field's.
    picture = next((name for name in ("mesh.png", "views.png") if name in there), None)
    facts = [entry.state, *([duration(entry.seconds)] if entry.seconds else [])]
    facts += [f'<a href="{place}/{file}">{w}</a>' for file, w in _LINKS.items() if file in there]
    shown = message = ""
    if entry.message:
        message = f'<p class="message">{escape(entry.message)}</p>'
    if picture:
        image = f'<img src="{place}/{picture}" alt="views" loading="lazy">'
        shown = f'<a href="{place}/views.png">{image}</a>'
    return f"""<section class="{entry.state}">
<h2>{number}. {escape(entry.prompt)}</h2>
<p>{" · ".join(facts)}</p>
{message}{shown}
</section>"""


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere }
section { margin: 1rem 0; padding-left: 1rem; border-left: .3rem solid #8888 }
section p { margin: .2rem 0 .5rem; font-size: .9rem }
.done { border-color: #4a4 }
.failed { border-color: #c33 }
.running { border-color: #36c }
.message { color: #c33; overflow-wrap: anywhere }
img { max-width: 100%; max-height: 32rem; border-radius: .5rem }
"""
