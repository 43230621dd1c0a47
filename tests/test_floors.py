"""The rule of floors: which part of the package may import which, and no circles."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dreamjax"

# Every part may import these.
COMMON = ("errors", "settings", "clock")
# What each part may import besides; a dotted name is that module alone.
FLOORS = {
    "errors": (),
    "settings": (),
    "clock": (),
    "config": (),
    "workdir": ("config",),
    "devices": (),
    "weights": ("workdir",),
    "diffusion": (),
    "scene": (),
    "nets": (),
    "toybox": ("scene",),
    "data": ("scene", "toybox", "config", "workdir"),
    "priors": ("diffusion", "nets", "weights", "scene.camera", "scene.views"),
    "distill": ("diffusion", "scene", "priors.base"),
    "training": ("scene", "config", "workdir"),
    "export": ("scene", "config", "workdir"),
    "evaluate": (
        *("toybox", "data", "nets", "scene", "diffusion", "export", "weights"),
        *("config", "workdir"),
    ),
    "many": ("config", "export", "training", "workdir"),
}
ABOVE_ALL = ("tasks", "api", "main")


def module_name(path: Path, package: Path) -> str:
    """Return the dotted name of a file inside the package, "" for its own `__init__`."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(package: Path) -> list[tuple[str, str, str]]:
    """Return (module, what it imports of the package, file:line), both dotted and inside it.

    Imports inside functions count too. `from dreamjax.a import b` gives a.b if that is a module.
    """
    files = sorted(package.rglob("*.py"))
    modules = {module_name(path, package) for path in files}
    found = []

    def add(module, name, path, line):
        while name not in modules and "." in name:
            name = name.rpartition(".")[0]
        found.append((module, name, f"{path.relative_to(package.parent)}:{line}"))

    for path in files:
        module = module_name(path, package)
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root, _, rest = alias.name.partition(".")
                    if root == package.name:
                        add(module, rest, path, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    up = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                    base = [*up[: len(up) - node.level + 1], *(node.module or "").split(".")]
                    base = ".".join(part for part in base if part)
                else:
                    root, _, base = (node.module or "").partition(".")
                    if root != package.name:
                        continue
                for alias in node.names:
                    add(module, f"{base}.{alias.name}".lstrip("."), path, node.lineno)
    return found


def offences(package: Path) -> list[str]:
    """Return every import that the floors forbid, as a line that names it."""
    bad = []
    for module, target, place in imports(package):
        part, _, _ = module.partition(".")
        other, _, _ = target.partition(".")
        if part in ABOVE_ALL or other in ("", part, *COMMON) or module == "":
            if part == "tasks" and other == "main":
                bad.append(f"{place}: tasks may not import main")
            continue
        if part not in FLOORS:
            bad.append(f"{place}: {part} has no floor: give it one in {Path(__file__).name}")
        elif not any(target == a or target.startswith(a + ".") for a in FLOORS[part]):
            allowed = ", ".join(FLOORS[part]) or "nothing of ours"
            bad.append(f"{place}: {module} imports {target}, but {part} may import {allowed}")
    return bad


def circle(package: Path) -> list[str]:
    """Return the modules of one circle of imports, empty where there is none."""
    graph: dict[str, set[str]] = {}
    for module, target, _ in imports(package):
        # A package's __init__ is run by importing what is in it: that alone is no circle.
        if target and target != module and not module.startswith(target + "."):
            graph.setdefault(module, set()).add(target)
    done: set[str] = set()

    def visit(module, trail):
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module not in done:
            for target in sorted(graph.get(module, ())):
                if found := visit(target, [*trail, module]):
                    return found
            done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module, []):
            return found
    return []


def test_every_import_is_allowed():
    assert imports(PACKAGE), "no imports were found: the walk is broken"
    bad = offences(PACKAGE)
    assert not bad, "\n".join(bad)


def test_there_are_no_circles():
    found = circle(PACKAGE)
    assert not found, " -> ".join(found)


def make_package(root: Path, files: dict[str, str]) -> Path:
    """Write a package with these files."""
    package = root / "dreamjax"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("scene/a.py", "from dreamjax.diffusion import process", "scene may import nothing"),
        ("scene/a.py", "def f():\n    import dreamjax.nets.unet", "dreamjax/scene/a.py:2"),
        ("scene/a.py", "from ..diffusion.process import q_sample", "imports diffusion.process"),
        ("scene/a.py", "from dreamjax import diffusion", "scene.a imports diffusion"),
        ("training/a.py", "from dreamjax.nets.unet import UNet", "training may import scene"),
        ("nets/a.py", "from dreamjax import config", "nets.a imports config"),
        ("distill/a.py", "from dreamjax.priors.toybox import load", "imports priors.toybox"),
        ("newcomer/a.py", "from dreamjax.scene import camera", "newcomer has no floor"),
        ("tasks/a.py", "from dreamjax.main import main", "tasks may not import main"),
    ],
)
def test_a_forbidden_import_is_named(tmp_path, name, text, says):
    others = ["diffusion/process", "nets/unet", "priors/toybox", "scene/camera", "main", "config"]
    files = {f"{other}.py": "" for other in others} | {name: text}
    bad = offences(make_package(tmp_path, files))
    assert len(bad) == 1 and says in bad[0], bad


def test_allowed_imports_pass(tmp_path):
    files = {
        "scene/camera.py": "import numpy\nfrom dreamjax.errors import UserError",
        "scene/rays.py": "from .camera import orbit\nfrom dreamjax.scene import camera",
        "priors/base.py": "from dreamjax.nets import text",
        "nets/text.py": "",
        "distill/sds.py": "from dreamjax.priors.base import Prior",
        "tasks/dream.py": "from dreamjax import config\nfrom dreamjax.toybox import draw",
        "toybox/draw.py": "from dreamjax.scene.camera import orbit",
        "config.py": "",
        "errors.py": "",
    }
    package = make_package(tmp_path, files)
    assert offences(package) == [] and circle(package) == []


def test_a_circle_is_found(tmp_path):
    files = {
        "scene/a.py": "from dreamjax.scene import b",
        "scene/b.py": "from dreamjax.scene.c import thing",
        "scene/c.py": "def f():\n    from .a import other",
    }
    assert circle(make_package(tmp_path, files)) == ["scene.a", "scene.b", "scene.c", "scene.a"]
