"""The command line: every mistake is one line on stderr and exit status 2."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreamjax import main as main_lib
from dreamjax.errors import UserError

CONFIG = """
from ml_collections import config_dict


def get_config(word="none"):
    return config_dict.ConfigDict(
        dict(
            task="dream", prompt="", steps=100, rate=1e-3, flag=True, word=word,
            span=(0.02, 0.98), weights=None, field=dict(width=64, decay=None),
        )
    )
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
    """Every task stores what it is called with instead of running."""
    calls = []
    task = SimpleNamespace(run=lambda config, workdir: calls.append((config, workdir)))
    monkeypatch.setattr(main_lib.tasks, "load", lambda name: task)
    return calls


def run(*args):
    return main_lib.main(["main.py", *map(str, args)])


def test_overrides_reach_the_task(config_file, called, tmp_path):
    status = run(
        f"--config={config_file}:hello", "--config.prompt", "a red ball", "--config.steps=12",
        "--config.rate=1", "--noconfig.flag", "--config.span=(0.1,0.5)", "--config.weights=a.st",
        "--config.field.decay=1e-6", f"--workdir={tmp_path}/run", "--config.field.width=3",
    )  # fmt: skip
    assert status == 0
    [(config, workdir)] = called
    assert config.to_dict() == dict(
        task="dream", prompt="a red ball", steps=12, rate=1.0, flag=False, word="hello",
        span=(0.1, 0.5), weights="a.st", field=dict(width=3, decay=1e-6),
    )  # fmt: skip
    assert config.is_locked and workdir == tmp_path / "run"


@pytest.mark.parametrize(
    "args, says",
    [
        (["--config.stpes=3"], "unknown config key --config.stpes, did you mean config.steps?"),
        (["--config.field.widht=3"], "--config.field.widht, did you mean config.field.width?"),
        (["--config.steps=abc"], "--config.steps=abc: expected int, as the default 100"),
        (["--config.steps=1.5"], "--config.steps=1.5: expected int"),
        (["--config.rate=fast"], "--config.rate=fast: expected float, as the default 0.001"),
        (["--config.flag=maybe"], "--config.flag=maybe: expected bool"),
        (["--config.field=3"], "--config.field is a group: set its values, as --config.field."),
        (["--config.prompt=a", "red", "ball"], "unexpected argument 'red': quote values"),
        (["--worksdir=x"], "unknown flag --worksdir, did you mean workdir?"),
        (["--config.steps"], "--config.steps"),
    ],
)
def test_a_mistyped_flag_is_one_line(config_file, called, capsys, args, says):
    assert run(f"--config={config_file}", "--workdir=/nowhere", *args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err and not out
    assert not called


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "there is no config file"),
        ("def get_config(:", "bad.py, line 1: "),
        ("import math\n\ndef get_config():\n    return math.no", "bad.py, line 4: AttributeError"),
        ("import nothing_like_this", "bad.py, line 1: ModuleNotFoundError"),
        ("x = 1", "no attribute 'get_config'"),
        ("def get_config():\n    return {}", "must return an ml_collections.ConfigDict"),
        (CONFIG.replace('task="dream",', ""), "the config has no `task`"),
        (CONFIG.replace('"dream"', '"no such task"'), "unknown task 'no such task'"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path, capsys, text, says):
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    assert run(f"--config={tmp_path}/bad.py", "--workdir=/nowhere") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_a_misspelt_config_file_is_suggested(config_file, capsys):
    assert run(f"--config={config_file.parent}/godo.py") == 2
    assert f"did you mean {config_file}?" in capsys.readouterr().err


def test_config_and_workdir_are_needed(config_file, capsys):
    assert run() == 2
    assert "error: --config is missing" in capsys.readouterr().err
    assert run(f"--config={config_file}") == 2
    assert "error: --workdir is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, status, says",
    [
        (UserError("no such\nword"), 2, "error: no such word\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 2, "error: No space left on"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_task_raises(config_file, monkeypatch, capsys, error, status, says):
    def fail(config, workdir):
        raise error

    monkeypatch.setattr(main_lib.tasks, "load", lambda name: SimpleNamespace(run=fail))
    assert run(f"--config={config_file}", "--workdir=x") == status
    assert capsys.readouterr().err.startswith(says)


def test_a_bug_keeps_its_traceback(config_file, monkeypatch):
    def fail(config, workdir):
        raise RuntimeError("bug")

    monkeypatch.setattr(main_lib.tasks, "load", lambda name: SimpleNamespace(run=fail))
    with pytest.raises(RuntimeError):
        run(f"--config={config_file}", "--workdir=x")


def test_help_lists_the_configs_values(config_file, capsys):
    assert run("--help") == 0
    assert "--workdir" in capsys.readouterr().out
    assert run(f"--config={config_file}", "--help", "--config.steps=7") == 0
    out = capsys.readouterr().out
    assert "--config.steps=7" in out and "--config.field.width=64" in out


def test_as_a_process_it_is_quick_and_quiet(config_file, tmp_path):
    code = (
        "import sys; from dreamjax.main import main; status = main(sys.argv);"
        "heavy = {'jax', 'tensorflow', 'orbax', 'numpy'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(status)"
    )
    root = str(Path(__file__).resolve().parents[1])
    args = [f"--config={config_file}", "--config.stpes=3", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=root, env=dict(os.environ, PYTHONPATH=root), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "did you mean config.steps?" in done.stderr
    assert done.stdout == "[]\n", "a mistake is told before anything heavy is imported"
    assert not (tmp_path / "run").exists()
