"""The command line: every mistake is one line on stderr and exit status 2."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dreamjax import __version__
from dreamjax import main as main_lib
from dreamjax.errors import FullDisk, UserError
from dreamjax.training.interrupt import Stopped

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from dreamjax.clock import Ramp
from dreamjax.settings import Count, Positive, settings


@settings
class Field:
    "A field."

    width: Count = 64  # units
    decay: Positive | None = None  # a rate


@settings
class Task:
    "A task that notes what it is."

    word: str = "none"
    prompt: str = ""  # what to make
    steps: Count = 100
    rate: Positive = 1e-3
    flag: bool = True
    span: tuple[float, float] = (0.02, 0.98)
    weights: str | None = None
    weight: Ramp = Ramp(0.0, 1.0)
    field: Field = Field()
    fields: tuple[Field, ...] = (Field(1), Field(2))

    def run(self, workdir):
        CALLS.append((self, workdir))


CALLS = []


def get_config(word="none"):
    return Task(word)
"""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Leave the user's cache and environment alone."""
    monkeypatch.setattr(main_lib, "keep_compiled", lambda: None)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "good.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def called(monkeypatch):
    """Every task stores itself and its workdir instead of running."""
    calls = []
    load = main_lib.load_config

    def loaded(spec):
        task = load(spec)
        monkeypatch.setattr(type(task), "run", lambda self, workdir: calls.append((self, workdir)))
        return task

    monkeypatch.setattr(main_lib, "load_config", loaded)
    return calls


def run(*args):
    return main_lib.main(["main.py", *map(str, args)])


def test_overrides_reach_the_task(config_file, called, tmp_path):
    status = run(
        f"--config={config_file}:hello", "--config.prompt", "a red ball", "--config.steps=12",
        "--config.rate=1", "--noconfig.flag", "--config.span=(0.1,0.5)", "--config.weights=a.st",
        "--config.field.decay=1e-6", f"--workdir={tmp_path}/run", "--config.field.width=3",
        "--config.weight.end=0.5", "--config.fields.1.width=7",
    )  # fmt: skip
    assert status == 0
    [(task, workdir)] = called
    assert (task.word, task.prompt, task.steps, task.rate) == ("hello", "a red ball", 12, 1.0)
    assert (task.flag, task.span, task.weights) == (False, (0.1, 0.5), "a.st")
    assert (task.field.decay, task.field.width, task.weight.end) == (1e-6, 3, 0.5)
    assert [field.width for field in task.fields] == [1, 7]
    assert workdir == f"{tmp_path}/run"


def test_parts_come_first_whatever_the_order(config_file, called):
    args = ["--config.weight.end=0.25", "--config.field.width=3", "--config.field", "field"]
    assert run(f"--config={config_file}", "--workdir=x", "--config.weight=3", *args) == 0
    [(task, _)] = called
    assert (task.weight.start, task.weight.end, task.field.width) == (3.0, 0.25, 3)


@pytest.mark.parametrize(
    "args, says",
    [
        (["--config.stpes=3"], "unknown config key --config.stpes, did you mean config.steps?"),
        (["--config.field.widht=3"], "--config.field.widht, did you mean config.field.width?"),
        (["--config.steps=abc"], "--config.steps=abc: expected a whole number, at least 1"),
        (["--config.steps=1.5"], "--config.steps=1.5: expected a whole number"),
        (["--config.steps=0"], "--config.steps is 0: expected at least 1"),
        (["--config.rate=fast"], "--config.rate=fast: expected a number, above 0, as the default"),
        (["--config.rate=-1"], "--config.rate is -1.0: expected above 0"),
        (["--config.flag=maybe"], "--config.flag=maybe: expected true or false"),
        (["--config.field=3"], "--config.field=3: there is no such part"),
        (["--config.field.decay=0"], "--config.field.decay is 0.0: expected above 0"),
        (["--config.fields.1.width=x"], "--config.fields.1.width=x: expected a whole number"),
        (["--config.fields.2.width=3"], "--config.fields.2.width, did you mean config.fields."),
        (["--config.span=(1,)"], "--config.span is (1,): expected 2 times a number"),
        (["--config.prompt=a", "red", "ball"], "unexpected argument 'red': quote values"),
        (["--worksdir=x"], "unknown flag --worksdir, did you mean workdir?"),
        (["--config.steps"], "--config.steps"),
        ([f"--config.{'x' * 5000}=1"], "unknown config key --config.xxx"),
        (["--config.prompt=" + "x" * 5000, "--config.steps=y"], "--config.steps=y"),
    ],
)
def test_a_mistyped_flag_is_one_line(config_file, called, capsys, args, says):
    assert run(f"--config={config_file}", "--workdir=/nowhere", *args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err and not out
    assert not called and len(err) < 1000


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "there is no config file"),
        ("def get_config(:", "bad.py, line 1: "),
        ("import math\n\ndef get_config():\n    return math.no", "bad.py, line 4: AttributeError"),
        ("import nothing_like_this", "bad.py, line 1: ModuleNotFoundError"),
        ("x = 1", "no attribute 'get_config'"),
        ("def get_config():\n    return {}", "get_config() must return a task"),
        (CONFIG.replace("Task(word)", "Field()"), "get_config() must return a task"),
        (CONFIG.replace("Task(word)", "Task(steps=0)"), "bad.py, line 37: steps is 0: expected"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path, capsys, text, says):
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    assert run(f"--config={tmp_path}/bad.py", "--workdir=/nowhere") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err, err


def test_a_misspelt_config_is_suggested(config_file, capsys):
    assert run(f"--config={config_file.parent}/godo.py") == 2
    assert f"did you mean {config_file}?" in capsys.readouterr().err
    assert run("--config=toybxo") == 2
    assert "there is no config toybxo, did you mean toybox?" in capsys.readouterr().err


def test_a_config_that_ships_goes_by_its_name(called, tmp_path):
    assert run("--config=toybox", "--config.prompt=a red ball", f"--workdir={tmp_path}/x") == 0
    assert run("--config=ddpm_digits:sample", f"--workdir={tmp_path}/y") == 0
    (dream, _), (sample, _) = called
    assert dream.prompt == "a red ball" and type(sample).__name__ == "Sample"


def test_config_and_workdir_are_needed(config_file, capsys):
    assert run("--workdir=x") == 2
    assert "error: --config is missing" in capsys.readouterr().err
    assert run(f"--config={config_file}") == 2
    assert "error: --workdir is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, prompt, workdir",
    [
        (["a red ball"], "a red ball", "runs/a-red-ball"),
        (["a", "red", "ball"], "a red ball", "runs/a-red-ball"),
        (["a", "ball", "--workdir=x"], "a ball", "x"),
        (["红球"], "红球", "runs/prompts"),
    ],
)
def test_a_dream_in_a_word(called, args, prompt, workdir):
    assert run("dream", *args, "--config.steps=9") == 0
    [(task, place)] = called
    assert (task.prompt, task.steps, place) == (prompt, 9, workdir)


def test_a_dream_needs_a_sentence(called, capsys):
    assert run("dream") == 2
    assert "dreamjax dream needs a sentence" in capsys.readouterr().err
    assert run("dream", "--config.prompts=x.txt") == 0
    assert called[0][0].prompts == "x.txt"


@pytest.mark.parametrize(
    "error, status, says",
    [
        (UserError("no such\nword"), 2, "error: no such word\n"),
        (UserError("x" * 5000), 2, "error: xxx"),
        (FullDisk("no space left to write f"), 1, "error: no space left to write f\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "error: no space left to write"),
        (OSError(errno.EACCES, "Permission denied", "f"), 2, "error: cannot write f: Permission"),
        (MemoryError(), 2, "error: there is not enough memory"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT\n"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM\n"),
    ],
)
def test_what_a_task_raises(config_file, capsys, error, status, says):
    config_file.write_text(CONFIG.replace("CALLS.append((self, workdir))", "raise ERROR[0]"))
    sys.modules["dreamjax_test_error"] = module = type(sys)("dreamjax_test_error")
    module.ERROR = [error]
    config_file.write_text(config_file.read_text() + "\nfrom dreamjax_test_error import ERROR\n")
    assert run(f"--config={config_file}", "--workdir=x") == status
    err = capsys.readouterr().err
    assert err.startswith(says) and err.count("\n") == 1 and len(err) < 1100


def test_a_bug_keeps_its_traceback(config_file):
    config_file.write_text(CONFIG.replace("CALLS.append((self, workdir))", "1 / 0"))
    with pytest.raises(ZeroDivisionError):
        run(f"--config={config_file}", "--workdir=x")


def test_help_lists_configs_and_explains_values(config_file, capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "--workdir" in out and re.search(r"^  toybox +Text to 3D on any machine", out, re.M)
    assert run() == 0 and capsys.readouterr().out == out
    assert run(f"--config={config_file}", "--help", "--config.steps=7") == 0
    out = capsys.readouterr().out
    assert "--config.steps=7" in out and "--config.field.width=64\n      units" in out
    assert run("dream", "--help") == 0
    assert "--config.penalties.entropy.weight=" in capsys.readouterr().out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"dreamjax {__version__}\n"


def test_as_a_process_it_is_quiet(config_file, tmp_path):
    args = [f"--config={config_file}", "--config.stpes=3", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-m", "dreamjax.main", *args],
        cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "did you mean config.steps?" in done.stderr
    assert not (tmp_path / "run").exists()


TALKER = """
import contextlib, os, time
from dreamjax.settings import settings

@settings
class Task:
    "A task that talks."

    prompt: str = ""

    def run(self, workdir):
        print("first", flush=True)
        for _ in range(50):
            print(self.prompt, "\\u7ea2", flush=True)
            time.sleep(0.01)
        with contextlib.suppress(OSError):
            os.write(1, b"a library that prints\\n")
        with open(workdir, "w") as file:
            file.write("whole")
            file.flush()
            time.sleep(float(os.environ.get("WAIT", 0)))

def get_config():
    return Task()
"""


def shell(command, **environment):
    env = dict(os.environ, PYTHONPATH=str(ROOT), **environment)
    command = command.replace("dreamjax", f"{sys.executable} -m dreamjax.main")
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "after, out",
    [
        ("| head -1", "first\n"),
        (">&- 2>&-", ""),
        ("<&- >&- 2>&-", ""),
        ("> /dev/full", ""),
        ("2> /dev/full | tail -2", "\\U0001f534 \\u7ea2\na library that prints\n"),
    ],
)
def test_output_that_nobody_takes_stops_nothing(tmp_path, after, out):
    (tmp_path / "talker.py").write_text(TALKER)
    command = f"set -o pipefail; dreamjax --config={tmp_path}/talker.py --config.prompt=🔴"
    done = shell(f"{command} --workdir={tmp_path}/out {after}", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, out, "")
    assert (tmp_path / "out").read_text() == "whole"


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT"])
def test_a_signal_is_told(tmp_path, name):
    (tmp_path / "talker.py").write_text(TALKER)
    args = [f"--config={tmp_path}/talker.py", f"--workdir={tmp_path}/out"]
    env = dict(os.environ, PYTHONPATH=str(ROOT), WAIT="60")
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-m", "dreamjax.main", *args]
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:
        assert process.stdout.readline() == "first\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, f"SIG{name}")
    assert err == f"stopped by SIG{name}\n"


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, dreamjax, dreamjax.main;"
        "print(sorted({'jax', 'tensorflow', 'orbax', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
