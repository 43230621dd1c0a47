"""What is installed: requirements, the files of wheel and sdist, and the scripts around them."""

import ast
import configparser
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dreamjax

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ("diffusion", "texture", "train")
NOT_IMPORTED = {
    "array-record": "tensorflow_datasets reads and writes its files by it",
    "importlib-resources": "tensorflow_datasets imports it without declaring it",
}
TOOLS = {
    "pytest-xdist",
    "ruff",
    "pyright",
    "setuptools",
    "beartype",
    "ipykernel",
}  # of the tests; run by name
NOT_SHIPPED = shutil.ignore_patterns(
    ".git",
    ".venv",
    "runs",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    "node_modules",
)


@functools.cache
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of the extras, or of a plain installation; those on ourselves resolved."""
    texts = [setup()["options.extras_require"][extra] for extra in extras]
    found = {}
    for line in lines("\n".join(texts) if extras else setup()["options"]["install_requires"]):
        requirement = Requirement(line)
        if requirement.name == "dreamjax":
            found |= declared(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


@functools.cache
def distributions() -> dict[str, list[str]]:
    return metadata.packages_distributions()


@functools.cache
def imported(*folders: str) -> dict[str, list[str]]:
    """Every distribution that the files below import, with the places that do."""
    found: dict[str, list[str]] = {}
    ours = {"dreamjax"} | {p.stem for p in (ROOT / "tests").rglob("*.py")}
    ours |= {p.name for p in (ROOT / "tests").iterdir()}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            else:
                continue
            for root in {name.partition(".")[0] for name in names}:
                if root in sys.stdlib_module_names or root in ours:
                    continue
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                # A namespace, as google, has several distributions: any will do.
                for name in distributions().get(root, [root])[:1]:
                    found.setdefault(canonicalize_name(name), []).append(place)
    return found


def test_all_that_is_imported_is_declared():
    package = imported("dreamjax", "configs")
    assert len(package) > 15, "hardly any import was found: the walk is broken"
    missing = package.keys() - declared().keys() - declared(*OPTIONAL).keys()
    assert not missing, {name: package[name][:3] for name in missing}
    tests = imported("tests")
    missing = tests.keys() - declared().keys() - declared("test", "parity", "notebooks").keys()
    assert not missing, {name: tests[name][:3] for name in missing}


def test_all_that_is_declared_is_used():
    package = imported("dreamjax", "configs").keys()
    unused = declared().keys() - package - NOT_IMPORTED.keys()
    assert not unused
    assert not declared(*OPTIONAL).keys() - package
    tests = imported("tests", "scripts").keys() | package
    assert not declared("test", "parity").keys() - tests - TOOLS


def test_no_extra_is_installed_by_default():
    assert not declared().keys() & declared(*OPTIONAL).keys()


def test_a_dream_needs_no_extra():
    """Every config is built, and every task imported, where what the extras install is missing."""
    modules = [m for m, names in distributions().items() for name in names
               if canonicalize_name(name) in declared(*OPTIONAL)]  # fmt: skip
    modules.append("xatlas")  # an extension alone, which Python 3.11 does not list
    assert {"sklearn", "matplotlib", "numba", "trimesh", "xatlas"} <= set(modules)
    code = f"""
import importlib, pkgutil, sys
for name in {modules!r}:
    sys.modules[name] = None
import dreamjax.api, dreamjax.tasks
from dreamjax.main import config_names, load_config
for found in pkgutil.iter_modules(dreamjax.tasks.__path__):
    importlib.import_module("dreamjax.tasks." + found.name)
for name in config_names():
    load_config(name)
print(len(config_names()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(list((ROOT / "configs").glob("*.py"))) - 1  # __init__.py


def test_every_requirement_is_pinned_at_or_above_its_floor():
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, constraints())}
    wanted = declared() | declared("test", "notebooks") | declared(*OPTIONAL)
    assert not wanted.keys() - pins.keys(), "not in constraints.txt"
    for name, requirement in wanted.items():
        (version,) = (spec.version for spec in pins[name].specifier)
        assert requirement.specifier.contains(version), (name, version)


def constraints() -> list[str]:
    return lines((ROOT / "constraints.txt").read_text())


def test_an_accelerators_jax_has_the_floor_of_any_other():
    for extra in ("cuda", "tpu"):
        assert declared(extra)["jax"].specifier == declared()["jax"].specifier


def test_every_folder_of_the_package_is_listed():
    folders = {path.parent for path in (ROOT / "dreamjax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"dreamjax.configs"}
    assert set(lines(setup()["options"]["packages"])) == names
    missing = [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing, "no __init__.py"


def test_the_version_is_told_alike():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == dreamjax.__version__


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path):
    """As where Python is started in the folder above a clone that is called dreamjax."""
    (tmp_path / "dreamjax" / "dreamjax").mkdir(parents=True)
    code = "import dreamjax, importlib.util as util; print(dreamjax.__file__);"
    code += "print(util.find_spec('dreamjax.configs.toybox').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    places = done.stdout.split()
    assert places == [str(ROOT / "dreamjax/__init__.py"), str(ROOT / "configs/toybox.py")]


BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(what: str, source: Path, target: Path) -> Path:
    """Build the sdist or the wheel of a source tree, as pip would without isolation."""
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The files of the source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "clone", ignore=NOT_SHIPPED)
    archive = build("sdist", folder / "clone", folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The files of the wheel that is built of the source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", sdist, folder)) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def shipped(folder: Path, *names: str) -> set[str]:
    """The files of these folders and files, as a clone of the present state would have them."""
    found = set()
    for path in (path for name in names for path in [folder / name, *(folder / name).rglob("*")]):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part == "__pycache__" for part in relative.parts):
            found.add(relative.as_posix())
    return found


def test_the_sdist_has_what_its_tests_need(sdist):
    wanted = shipped(
        ROOT, "dreamjax", "configs", "tests", "notebooks", "scripts", "docs", ".github", ".ci",
        "constraints.txt", "pyproject.toml", "setup.cfg", "README.md", "CONTRIBUTING.md",
        "CITATION.cff", "CHANGELOG.md", "LICENSE", "MANIFEST.in", ".gitignore",
    )  # fmt: skip
    assert not {name for name in wanted if ".ipynb_checkpoints" not in name} - shipped(sdist, ".")


def test_the_wheel_has_the_package_the_configs_and_nothing_else(wheel):
    files = shipped(wheel, ".")
    own = {name for name in files if ".dist-info/" not in name}
    configs = {f"dreamjax/{name}" for name in shipped(ROOT, "configs")}
    assert own == shipped(ROOT, "dreamjax") | configs
    assert "dreamjax/export/viewer.js" in own
    assert {"dreamjax/priors/weights", "dreamjax/evaluate/weights"} <= {
        os.path.dirname(name) for name in own if name.endswith(".safetensors")
    }
    (entry_points,) = (ROOT / wheel / name for name in files if name.endswith("entry_points.txt"))
    assert "dreamjax = dreamjax.main:cli" in entry_points.read_text()


def test_the_wheel_alone_finds_its_configs(wheel, tmp_path):
    """In an empty folder, before the clone on the path."""
    environment = os.environ | {"PYTHONPATH": str(wheel), "HOME": str(tmp_path)}

    def run(*args):
        done = subprocess.run(
            [sys.executable, *args], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert str(wheel) in run("-c", "import dreamjax; print(dreamjax.__file__)")
    assert str(wheel) in run("-c", "import dreamjax.configs.toybox as t; print(t.__file__)")
    assert dreamjax.__version__ in run("-m", "dreamjax.main", "--version")
    assert "--config.steps=" in run("-m", "dreamjax.main", "--config=toybox", "--help")


@pytest.fixture
def clone(tmp_path):
    """The scripts in a clone, with a Python that notes what it is called with."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone/scripts")
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" "--" >>{tmp_path}/calls\n')
    python.chmod(0o755)
    return tmp_path / "clone"


def script(clone, *args):
    return subprocess.run(
        [clone / "scripts/dream", *args], capture_output=True, text=True, cwd=clone.parent
    )


def calls(clone):
    """What Python was called with, once it was there."""
    text = (clone.parent / "calls").read_text()
    return [call.splitlines() for call in text.split("--\n") if call]


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["a", "ball", "--help"]])
def test_dream_helps_before_it_installs_anything(clone, args):
    done = script(clone, *args)
    assert done.returncode == 0 and done.stdout.startswith("usage: scripts/dream")
    assert not (clone / ".venv").exists() and not done.stderr


@pytest.mark.parametrize("args", [[], ["--config.steps=3"]])
def test_dream_without_words_installs_nothing(clone, args):
    done = script(clone, *args)
    assert done.returncode == 2 and done.stderr.startswith("usage: scripts/dream")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["a", "red", "ball"],
        ["a red ball", "--config.steps=3", "--workdir=runs/a b"],
        ["a", "ball", "--config=tpu_v4", "--config.objective.guidance_scale=50"],
        ["--config.prompts=prompts.txt"],
    ],
)
def test_dream_passes_everything_on(clone, args):
    (clone / ".venv/bin").mkdir(parents=True)
    shutil.copy(clone.parent / "python", clone / ".venv/bin/python")
    done = script(clone, *args)
    assert done.returncode == 0, done.stderr
    install, dream = calls(clone)
    assert install[:3] == ["-m", "pip", "install"] and "constraints.txt" in install
    assert dream == ["-P", "-m", "dreamjax.main", "dream", *args]
    script(clone, *args)
    assert calls(clone)[2:] == [dream], "what is installed is installed again"
