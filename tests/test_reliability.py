"""Nothing that a user gives ends in a traceback, and no kill or full disk costs a bit of a run.

`scripts/torture` runs the slow ones with more kills. What is malformed is drawn with a fixed seed.
"""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dreamjax import main as main_lib
from dreamjax.config import dumps, leaves
from dreamjax.errors import UserError
from dreamjax.export.report import Page, page_html
from dreamjax.many import read_prompts
from dreamjax.tasks.dream import Dream, load
from dreamjax.training.loop import spent
from dreamjax.training.metrics import Log, read_history
from dreamjax.workdir import stored_task

from .tiny import write_tiny_prior

ROOT = Path(__file__).resolve().parents[1]
COUNT = 300
KILLS = int(os.environ.get("TORTURE_KILLS", 5))
ODD = (
    *("", " ", "\0", "\n", "a\nb", "None", "nan", "-nan", "inf", "-inf", "1e400", "-0", "0x10"),
    *("9" * 30, "9" * 5000, "1_0", "true", "[]", "{}", "()", "(1,", "[" * 3000, "(" * 200, "'"),
    *(
        "\ud800",
        "红",
        "\u202e",
        "%s%n",
        "../..",
        "~",
        "~nobody",
        "$HOME",
        "a.b:C",
        ":",
        "os:system",
    ),
    *("dreamjax.main:cli", "builtins:int", "lambda: 0", "__class__", "\x1b[2J", "x" * 100_000),
)
VALUES = (
    *(None, True, False, 0, -1, 1e308, 10**400, float("nan"), float("inf"), "", "\0", "\ud800"),
    *([], {}, [[]], {"class": None}, {"class": "dreamjax.main:cli"}, {"class": "os:system"}),
    *({"class": "dreamjax.export.glb:Glb"}, {"class": "dreamjax..x:Y"}, ["a"] * 1000, "x" * 10_000),
)


def check_line(text):
    """What a user is told is short, and one line once `main` has printed it."""
    assert text.strip() and "Traceback" not in text


def survives(call, *args):
    """Whether `call` took its input; anything but a UserError is a defect."""
    try:
        call(*args)
    except UserError as error:
        check_line(str(error))
        return False
    return True


def bytes_of(draw, good):
    """A good file with some of its bytes changed, cut off, doubled or replaced."""
    data = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        what = draw.randrange(5)
        if what == 0:
            del data[at:]
        elif what == 1:
            data[at : at + draw.randint(1, 9)] = draw.randbytes(draw.randint(0, 9))
        elif what == 2:
            data[at:at] = draw.choice(ODD).encode("utf-8", "surrogatepass")[:4000]
        elif what == 3:
            data[at:at] = data[at : at + 200]
        elif data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
    return bytes(data)


def tree_of(draw, plain):
    """A JSON value with some of its values changed or left out."""
    plain = json.loads(json.dumps(plain))
    for _ in range(draw.randint(1, 3)):
        place = plain
        while isinstance(place, dict | list) and place:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or draw.random() < 0.3:
                if draw.random() < 0.2:
                    del place[key]
                else:
                    place[key] = copy.deepcopy(draw.choice(VALUES))
                break
            place = place[key]
    return json.dumps(plain)


def override_of(draw, task):
    """An override that is most likely wrong."""
    path = draw.choice([*leaves(task), "field", "exports", "prior", "penalties.entropy", "phases"])
    if draw.random() < 0.3:
        at = draw.randrange(len(path))
        path = path[:at] + draw.choice(["", ".", "x", "0", "é", "-", "__class__"]) + path[at + 1 :]
    return draw.choice([f"--config.{path}=", f"--config.{path} ", f"-config.{path}="]) + (
        draw.choice(ODD)
    )


CONFIG = textwrap.dedent("""
    from dreamjax.tasks.dream import Dream
    from dreamjax.export.glb import Glb

    def get_config(word=""):
        return Dream(prompt="a red ball" + word, steps=4, exports=(Glb(),))
""")
LINES = (
    *("raise SystemExit", "raise SystemExit(0)", "import sys; sys.exit()", "1 / 0", "exit(3)"),
    *("raise KeyError", "raise Exception", "raise MemoryError", "assert False", "import nothing"),
    *("def get_config(a, b): pass", "get_config = 3", "class get_config: pass", "\tx", "\0", "é ="),
    *("def get_config(word=''): return get_config()", "class E(Exception): __str__ = 3\nraise E"),
    *("raise BaseException('x')", "raise GeneratorExit", "yield 1", "from . import x", "return 3"),
)


def config_file_of(draw):
    """A config file that is most likely wrong."""
    if draw.random() < 0.4:
        lines = CONFIG.split("\n")
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(LINES))
        return "\n".join(lines).encode()
    return bytes_of(draw, CONFIG.encode())


def test_overrides(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    draw, task = random.Random(1), main_lib.load_config("toybox")
    taken = sum(survives(main_lib.override, task, [override_of(draw, task)]) for _ in range(COUNT))
    assert taken < COUNT / 2


def test_config_files(tmp_path):
    draw, path = random.Random(2), tmp_path / "config.py"
    for _ in range(COUNT):
        path.write_bytes(config_file_of(draw))
        survives(main_lib.load_config, str(path))


def test_config_json(tmp_path):
    draw, good = random.Random(3), dumps(Dream(prompt="a red ball"))
    path = tmp_path / "config.json"
    for i in range(COUNT):
        text = tree_of(draw, json.loads(good)).encode() if i % 2 else bytes_of(draw, good.encode())
        path.write_bytes(text)
        survives(stored_task, tmp_path)


def test_manifest_json(tmp_path):
    task = Dream(prompt="a red ball")
    exports = {name: {"files": []} for name in ("views", "glb", "mesh_sheet", "turntable")}
    good = {"prompt": "", "exports": {**exports, "report": {}}, "settings": json.loads(dumps(task))}
    path, draw = tmp_path / "manifest.json", random.Random(4)
    path.write_text(json.dumps(good))
    assert task.is_complete(tmp_path)
    for i in range(COUNT):
        text = json.dumps(good).encode()
        path.write_bytes(tree_of(draw, good).encode() if i % 2 else bytes_of(draw, text))
        task.is_complete(tmp_path)
    for text in ("[" * 100_000, "null", "[]", "3", '{"exports": [], "settings": null}'):
        path.write_text(text)
        assert not task.is_complete(tmp_path)


def test_metrics(tmp_path):
    draw, path = random.Random(5), tmp_path / "metrics.jsonl"
    row = {"step": 3, "opacity": 0.5, "grad_norm": 2.0, "seconds": 7.5}
    for i in range(COUNT):
        rows = [tree_of(draw, row) for _ in range(4)]
        text = "\n".join(rows).encode()
        path.write_bytes(text if i % 2 else bytes_of(draw, text))
        history = read_history(tmp_path)
        assert 0.0 <= abs(spent(tmp_path)) < 1e309
        curve = [r.get("opacity", np.nan) for r in history]
        page_html(Page("", spent(tmp_path), {}, [int(r["step"]) for r in history], {"x": curve}))
    log = Log(tmp_path, start=5)
    log.close()
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in read_history(tmp_path))


def test_prompts(tmp_path):
    draw, path = random.Random(6), tmp_path / "prompts.txt"
    for _ in range(COUNT):
        path.write_bytes(bytes_of(draw, "a red ball\n# none\n\na blue cube, 红\n".encode()))
        survives(read_prompts, str(path))


# As commands

TINY = """
from dreamjax.clock import Ramp
from dreamjax.distill.step import Phase
from dreamjax.export.glb import Glb
from dreamjax.export.report import Report
from dreamjax.export.surface import Surface
from dreamjax.export.turntable import Turntable
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream

def get_config():
    return Dream(
        prompt="a red mushroom with a white stem",
        prior=Toybox(weights="WEIGHTS"),
        seed=1, steps=STEPS, phases=(Phase(size=16),), batch_views=2,
        field=Mlp(width=16, blocks=1), renderer=Renderer(samples=8, normal_samples=2),
        surface=Surface(resolution=24), exports=(Glb(), Turntable(3, 16), Report()),
        views_every=0, log_every=1, checkpoint_every=2,
    )
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A config file of a tiny dream."""
    folder = tmp_path_factory.mktemp("tiny")
    weights = write_tiny_prior(folder / "tiny.safetensors", size=16)
    path = folder / "tiny.py"
    path.write_text(TINY.replace("WEIGHTS", str(weights)).replace("STEPS", "40"))
    return path


def command(*args, timeout=600, **environment):
    """Run `dreamjax`; its status, what it said on stderr beside progress, its output."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_DISABLE_MOST_OPTIMIZATIONS="1", **environment)
    done = subprocess.run(
        [sys.executable, "-m", "dreamjax.main", *map(str, args)],
        env=env, capture_output=True, timeout=timeout,
    )  # fmt: skip
    err = done.stderr.decode(errors="replace").splitlines()
    progress = ("step ", "the turntable: ", "the mesh's grid: ")
    return done.returncode, [line for line in err if not line.startswith(progress)], done.stdout


def check_refused(status, err):
    assert status == 2 and 1 <= len(err) <= 3 and err[-1].startswith("error: "), (status, err)
    assert len(err[-1]) < 1100


def can_be_said(text: str) -> bool:
    """Whether an operating system passes it to a command at all."""
    try:
        return "\0" not in text and len(os.fsencode(text)) < 50_000
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False


def malformed(tiny, folder):
    """(kind, arguments) of commands that cannot be meant; files lie in `folder`."""
    draw, task = random.Random(7), main_lib.load_config("toybox")
    number = 0

    def write(content, name):
        nonlocal number
        number += 1
        path = folder / f"{number}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path

    while True:
        text = override_of(draw, task)
        if can_be_said(text) and not survives(main_lib.override, task, [text]):
            yield "override", ["--config=toybox", text, f"--workdir={folder}/new"]
        path = write(config_file_of(draw), "config.py")
        if not survives(main_lib.load_config, str(path)):
            yield "config file", [f"--config={path}", f"--workdir={folder}/new"]
        good = dumps(main_lib.load_config(str(tiny)))
        path = write(tree_of(draw, json.loads(good)).encode(), "config.json")
        if not survives(stored_task, path.parent):
            yield "config.json", [f"--config={tiny}", f"--workdir={path.parent}"]
        path = write(bytes_of(draw, b"a red ball\na blue cube\n"), "prompts.txt")
        if not survives(read_prompts, str(path)):
            prompts = [f"--config.prompts={path}", f"--workdir={folder}/new"]
            yield "prompts", [f"--config={tiny}", "--config.prompt=", *prompts]


@pytest.mark.slow
def test_malformed_input_as_commands(tiny, tmp_path):
    seen = dict.fromkeys(("override", "config file", "config.json", "prompts"), 0)
    for kind, args in malformed(tiny, tmp_path):
        if min(seen.values()) >= 30:
            break
        if seen[kind] < 30:
            seen[kind] += 1
            check_refused(*command(*args)[:2])
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """The last state of a run that nothing happened to, and how long it took."""
    folder, began = tmp_path_factory.mktemp("runs") / "undisturbed", time.monotonic()
    status, err, _ = command(f"--config={tiny}", f"--workdir={folder}")
    assert (status, err) == (0, [])
    return numbers(folder), time.monotonic() - began


def numbers(folder):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load(folder).state)]


def assert_same_bits(folder, expected):
    for ours, theirs in zip(numbers(folder), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    left = [path for path in folder.rglob("*") if ".part" in path.name or "tmp" in path.name]
    assert left == []


@pytest.mark.slow
def test_kills_cost_no_bit(tiny, undisturbed, tmp_path):
    draw, folder = random.Random(8), tmp_path / "run"
    expected, seconds = undisturbed
    args = [sys.executable, "-m", "dreamjax.main", f"--config={tiny}", f"--workdir={folder}"]
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    killed = 0
    while killed < KILLS:
        process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, err = process.communicate(timeout=draw.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, err = process.communicate()
            killed += 1
        else:  # it had finished: begin anew
            assert process.returncode == 0, err
            assert_same_bits(folder, expected)
            folder = tmp_path / f"run{killed}-{time.monotonic_ns()}"
            args[-1] = f"--workdir={folder}"
        assert b"Traceback" not in err
    assert command(*args[3:])[0] == 0
    assert_same_bits(folder, expected)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 8_000, 200_000])
def test_a_full_disk_costs_no_bit(tiny, undisturbed, tmp_path, free):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of few bytes cannot be mounted here")
    try:
        (disk / "ballast").write_bytes(bytes(2**23 - free))
        args = [f"--config={tiny}", f"--workdir={disk}/run"]
        status, err, _ = command(*args)
        assert status == 1 and len(err) == 1, err
        assert err[0].startswith("error: ") and "no space left to write" in err[0]
        (disk / "ballast").unlink()
        assert command(*args)[0] == 0
        assert_same_bits(disk / "run", undisturbed[0])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
