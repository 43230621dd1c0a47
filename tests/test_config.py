"""Dataclasses from mappings, and who owns a workdir."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from ml_collections import config_dict

from dreamjax.config import build, check_workdir, nearest, release_workdir
from dreamjax.errors import UserError


@dataclass(frozen=True)
class Inner:
    """A group."""

    width: int = 8
    rate: float = 0.5
    span: tuple[float, float] = (0.0, 1.0)
    mults: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        """Refuse a width below one."""
        if self.width < 1:
            raise ValueError(f"width is {self.width}, expected at least 1")


@dataclass(frozen=True)
class Outer:
    """A config."""

    name: str
    flag: bool = False
    weights: str | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)


def test_values_arrive_with_the_types_of_the_fields():
    config = config_dict.ConfigDict({"name": "x", "inner": {"rate": 2, "span": [0, 3]}})
    built = build(Outer, config)
    assert built == Outer("x", inner=Inner(rate=2.0, span=(0.0, 3.0)))
    assert type(built.inner.rate) is float and type(built.inner.span[1]) is float
    assert build(Outer, {"name": "x", "weights": "w", "kind": "b"}).weights == "w"
    assert build(Outer, {"name": "x", "inner": Inner(3)}).inner.width == 3
    placeholder = config_dict.ConfigDict({"name": "x"})
    placeholder.weights = config_dict.placeholder(str)
    assert build(Outer, placeholder).weights is None


@pytest.mark.parametrize(
    "change, says",
    [
        ({"inner": {"widht": 3}}, "unknown config key c.inner.widht, did you mean width?"),
        ({"zzz": 3}, "unknown config key c.zzz"),
        ({"inner": {"width": 3.5}}, "c.inner.width is 3.5: expected int"),
        ({"inner": {"width": True}}, "c.inner.width is True: expected int"),
        ({"inner": {"width": 0}}, "c.inner: width is 0, expected at least 1"),
        ({"inner": {"rate": "0.5"}}, "c.inner.rate is '0.5': expected float"),
        ({"inner": {"rate": False}}, "c.inner.rate is False: expected float"),
        ({"inner": {"rate": float("nan")}}, "c.inner.rate is nan: expected float"),
        ({"inner": {"span": (1.0,)}}, "c.inner.span is (1.0,): expected tuple[float, float]"),
        ({"inner": {"span": (1.0, "x")}}, "c.inner.span[1] is 'x': expected float"),
        ({"inner": {"mults": 2}}, "c.inner.mults is 2: expected tuple[int, ...]"),
        ({"inner": 7}, "c.inner is 7: expected a group of width, rate, span, mults"),
        ({"flag": 1}, "c.flag is 1: expected bool"),
        ({"weights": 4}, "c.weights is 4: expected str"),
        ({"kind": "c"}, "c.kind is 'c': expected one of 'a', 'b'"),
        ({"name": None}, "c.name is None: expected str"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(change, says):
    with pytest.raises(UserError) as error:
        build(Outer, {"name": "x", **change}, where="c")
    assert str(error.value) == says


def test_a_missing_value_is_named():
    with pytest.raises(UserError, match="config.name is missing: expected str"):
        build(Outer, {})


def test_nearest():
    assert nearest("stpes", ["steps", "seed"]) == ", did you mean steps?"
    assert nearest("zzz", ["steps", "seed"]) == ""


def run_config(**changes):
    config = config_dict.ConfigDict(
        {"prompt": "a red ball", "seed": 0, "span": (0.1, 1.0), "log": {"every": 10}}
    )
    config.update(changes)
    return config


def test_a_new_workdir_is_claimed_and_gone_on_with(tmp_path):
    workdir = tmp_path / "deep" / "run"
    assert check_workdir(workdir, run_config()) == workdir
    text = (workdir / "config.json").read_text()
    assert json.loads(text)["span"] == [0.1, 1.0] and json.loads(text)["prompt"] == "a red ball"
    (workdir / "views.png").write_text("")
    check_workdir(workdir, run_config())
    assert (workdir / "config.json").read_text() == text
    assert sorted(os.listdir(workdir)) == [".lock", "config.json", "views.png"]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"prompt": "a cube"}, 'prompt is "a red ball" there and "a cube" here;'),
        ({"span": (0.1, 0.9)}, r"span is \[0.1, 1.0\] there and \[0.1, 0.9\] here;"),
        ({"extra": 1}, 'extra is "absent" there and 1 here;'),
        ({"seed": 1, "prompt": "b"}, r'prompt is "a red ball" there.*\(also differing: seed\)'),
        ({"log": {"every": 20}}, "log.every is 10 there and 20 here"),
    ],
)
def test_another_runs_workdir_is_left_alone(tmp_path, change, says):
    check_workdir(tmp_path, run_config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=f"belongs to another run: {says}"):
        check_workdir(tmp_path, run_config(**change))
    assert (tmp_path / "config.json").read_bytes() == before


def test_harmless_keys_may_change(tmp_path):
    check_workdir(tmp_path, run_config())
    check_workdir(tmp_path, run_config(log={"every": 20}), harmless=("log",))
    assert json.loads((tmp_path / "config.json").read_text())["log"]["every"] == 20
    with pytest.raises(UserError, match="seed is 0 there"):
        check_workdir(tmp_path, run_config(seed=2), harmless=("log", "se"))


def test_a_directory_of_other_things_is_refused(tmp_path):
    (tmp_path / "log.txt").write_text("")  # a shell's redirection is no reason
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds thesis.tex but no config.json"):
        check_workdir(tmp_path, run_config())
    assert sorted(os.listdir(tmp_path)) == [".hidden", "log.txt", "thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    check_workdir(tmp_path, run_config())


def test_a_workdir_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot use the workdir .*file"):
        check_workdir(tmp_path / "file", run_config())
    with pytest.raises(UserError, match="cannot use the workdir .*run"):
        check_workdir(tmp_path / "file" / "run", run_config())
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*config.json"):
        check_workdir(tmp_path / "broken", run_config())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UserError, match="no permission to write"):
            check_workdir(tmp_path, run_config())
        with pytest.raises(UserError, match="Permission denied"):
            check_workdir(tmp_path / "new", run_config())
    finally:
        tmp_path.chmod(stat.S_IRWXU)


CLAIM = """
import sys
from dreamjax.config import check_workdir
from dreamjax.errors import UserError
try:
    check_workdir(sys.argv[1], {"seed": 0})
except UserError as error:
    sys.exit(str(error))
print("claimed", flush=True)
sys.stdin.read()
"""


def claim_elsewhere(workdir):
    """Another process that tries to claim the workdir and, if it can, holds it until killed."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", CLAIM, str(workdir)], text=True, **pipes)


def test_one_process_a_workdir(tmp_path):
    with claim_elsewhere(tmp_path / "run") as holder:
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(UserError, match="another process is running in the workdir .*run: "):
            check_workdir(tmp_path / "run", {"seed": 0})
        check_workdir(tmp_path / "beside", {"seed": 0})
        holder.kill()  # nothing is left that would have to be cleaned up
    check_workdir(tmp_path / "run", {"seed": 0})
    check_workdir(tmp_path / "run", {"seed": 0})  # gone on with in the same process
    with claim_elsewhere(tmp_path / "run") as other:
        assert other.communicate()[1].startswith("another process is running in the workdir")
    assert other.returncode == 1
    release_workdir(tmp_path / "run")
    release_workdir(tmp_path / "never")
    with claim_elsewhere(tmp_path / "run") as other:
        assert other.stdout.readline() == "claimed\n"
        other.kill()


def test_a_value_that_json_cannot_hold(tmp_path):
    with pytest.raises(UserError, match="cannot be stored"):
        check_workdir(tmp_path / "run", {"x": object()})
    assert not (tmp_path / "run").exists()
