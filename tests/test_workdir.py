"""Who owns a workdir, and that no file is ever half-written."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dreamjax import workdir as workdir_lib
from dreamjax.clock import Ramp
from dreamjax.errors import FullDisk, UserError
from dreamjax.settings import settings
from dreamjax.workdir import (
    cannot_write,
    claim,
    release,
    replacing,
    resolved,
    slug,
    stored_task,
    write_bytes,
)

ROOT = Path(__file__).resolve().parents[1]


@settings
class Task:
    """A run."""

    prompt: str = "a red ball"
    seed: int = 0
    span: tuple[float, float] = (0.1, 1.0)
    weight: Ramp = Ramp()


def test_a_new_workdir_is_claimed_and_gone_on_with(tmp_path):
    workdir = tmp_path / "deep" / "run"
    assert claim(workdir, Task()) == workdir
    text = (workdir / "config.json").read_text()
    assert json.loads(text)["span"] == [0.1, 1.0] and json.loads(text)["prompt"] == "a red ball"
    (workdir / "views.png").write_text("")
    claim(workdir, Task())
    assert (workdir / "config.json").read_text() == text
    assert sorted(os.listdir(workdir)) == [".lock", "config.json", "views.png"]
    assert stored_task(workdir) == Task()


@pytest.mark.parametrize(
    "task, says",
    [
        (Task("a cube"), "prompt is 'a red ball' there and 'a cube' here;"),
        (Task(span=(0.1, 0.9)), r"span is \(0.1, 1.0\) there and \(0.1, 0.9\) here;"),
        (Task("b", 1), r"prompt is 'a red ball' there.*\(also differing: seed\)"),
        (Task(weight=3), r"weight.end is 0.0 there and 3.0 here \(also differing: weight.start\)"),
        (Ramp(), "prompt is 'a red ball' there and 'absent' here"),
    ],
)
def test_another_runs_workdir_is_left_alone(tmp_path, task, says):
    claim(tmp_path, Task())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=f"belongs to another run: {says}"):
        claim(tmp_path, task)
    assert (tmp_path / "config.json").read_bytes() == before


def test_harmless_values_may_change(tmp_path):
    claim(tmp_path, Task())
    claim(tmp_path, Task(weight=2), harmless=("weight",))
    assert json.loads((tmp_path / "config.json").read_text())["weight"]["end"] == 2.0
    with pytest.raises(UserError, match="seed is 0 there"):
        claim(tmp_path, Task(seed=2, weight=2), harmless=("weight", "se"))


def test_a_directory_of_other_things_is_refused(tmp_path):
    (tmp_path / "log.txt").write_text("")  # a shell's redirection is no reason
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds thesis.tex but no config.json"):
        claim(tmp_path, Task())
    assert sorted(os.listdir(tmp_path)) == [".hidden", "log.txt", "thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    claim(tmp_path, Task())


def test_a_home_is_nobodys_workdir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~", tmp_path, f"{tmp_path}/."):
        with pytest.raises(UserError, match="the workdir is your home directory"):
            claim(path, Task())
    assert list(tmp_path.iterdir()) == []
    assert claim("~/run", Task()) == tmp_path / "run"
    # Another one in the environment: what the system has on record counts too.
    import pwd

    here = pwd.getpwuid(os.getuid()).pw_dir
    with pytest.raises(UserError, match="the workdir is your home directory|holds"):
        claim(here, Task())


def test_hidden_folders_are_somebodys(tmp_path):
    (tmp_path / ".git").mkdir()
    with pytest.raises(UserError, match="holds .git but no config.json"):
        claim(tmp_path, Task())


def test_what_a_killed_process_left_is_swept(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from dreamjax.workdir import replacing\n"
        "with replacing(Path(sys.argv[1]) / 'turntable.mp4') as beside:\n"
        "    beside.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    claim(tmp_path, Task())
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env)
    (tmp_path / ".mine.7.mp4").write_text("kept")
    assert len(list(tmp_path.glob(".turntable.*"))) == 1
    claim(tmp_path, Task())
    assert sorted(os.listdir(tmp_path)) == [".lock", ".mine.7.mp4", "config.json"]


def test_no_space_left_is_an_error_of_its_own(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    for why in (full, "Error: RESOURCE_EXHAUSTED: x", OSError("tensorstore: No space left on it")):
        assert isinstance(cannot_write("f", why), FullDisk)
        assert str(cannot_write("f", why)) == "no space left to write f"
    denied = cannot_write("f", OSError(errno.EACCES, "Permission denied"))
    assert not isinstance(denied, FullDisk) and str(denied) == "cannot write f: Permission denied"


@pytest.mark.parametrize("path", ["~no_such_user_at_all/run", "x" * 5000, "a/" * 3000, "a\0b"])
def test_a_path_that_cannot_be_is_one_short_line(path):
    for use in (resolved, lambda p: claim(p, Task())):
        with pytest.raises(UserError) as caught:
            use(path)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_workdir_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot use the workdir .*file"):
        claim(tmp_path / "file", Task())
    with pytest.raises(UserError, match="cannot use the (workdir|path) .*run"):
        claim(tmp_path / "file" / "run", Task())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "cannot read .*config.json: Expecting"),
        (b"\xff\xfe", "cannot read .*config.json"),
        (b"[]", "cannot use .*config.json: it holds no JSON object"),
        (b"null", "it holds no JSON object"),
        (b'{"task": "dream", "steps": 300}', "written by another version of dreamjax"),
        (b'{"class": "dreamjax.tasks.dream:Dream"}', "is missing"),
        (b"[" * 100_000, "cannot read"),
    ],
)
def test_a_config_that_cannot_be_gone_on_with(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        claim(tmp_path, Task())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UserError, match="no permission to write"):
            claim(tmp_path, Task())
        with pytest.raises(UserError, match="Permission denied"):
            claim(tmp_path / "new", Task())
    finally:
        tmp_path.chmod(stat.S_IRWXU)


CLAIM = """
import sys
from dreamjax.clock import Ramp
from dreamjax.errors import FullDisk, UserError
from dreamjax.workdir import claim
try:
    claim(sys.argv[1], Ramp())
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
            claim(tmp_path / "run", Ramp())
        claim(tmp_path / "beside", Ramp())
        holder.kill()  # nothing is left that would have to be cleaned up
    claim(tmp_path / "run", Ramp())
    claim(tmp_path / "run", Ramp())  # gone on with in the same process
    with claim_elsewhere(tmp_path / "run") as other:
        assert other.communicate()[1].startswith("another process is running in the workdir")
    assert other.returncode == 1
    release(tmp_path / "run")
    release(tmp_path / "never")
    with claim_elsewhere(tmp_path / "run") as other:
        assert other.stdout.readline() == "claimed\n"
        other.kill()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    write_bytes(path, b"first")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    with replacing(path) as beside:
        assert beside.suffix == ".bin" and beside.parent == path.parent
        beside.write_bytes(b"second")
    assert path.read_bytes() == b"second"
    with pytest.raises(UserError, match="cannot write .*a.bin/b: "):
        write_bytes(path / "b", b"")


def test_a_prompt_as_a_folder():
    assert slug("A ball, on a CUBE!") == "a-ball-on-a-cube" and slug("红球") == ""
    assert len(slug("x y " * 100)) <= 60 and workdir_lib.CONFIG_FILE == "config.json"
