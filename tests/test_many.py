"""Many prompts in one go: real dreams of a network that nobody trained, and what may go wrong."""

import dataclasses
import json
import re

import pytest

from dreamjax import main as main_lib
from dreamjax import many
from dreamjax.distill.step import Phase
from dreamjax.errors import FullDisk, UserError
from dreamjax.export.base import MANIFEST
from dreamjax.export.glb import Glb
from dreamjax.export.mesh_sheet import MeshSheet
from dreamjax.export.surface import Surface
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer
from dreamjax.settings import settings
from dreamjax.tasks.dream import Dream
from dreamjax.workdir import CONFIG_FILE, resolved, write_text

from .tiny import write_tiny_prior

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The smallest of dreams, of two steps."""
    folder = tmp_path_factory.mktemp("many")
    return Dream(
        prompts=str(folder / "prompts.txt"),
        steps=2,
        batch_views=1,
        prior=Toybox(weights=str(write_tiny_prior(folder / "tiny.safetensors", size=8))),
        phases=(Phase(size=8, lit=False),),
        field=Mlp(width=8, blocks=1),
        renderer=Renderer(samples=8, normal_samples=2),
        surface=Surface(resolution=16),
        exports=(Glb(), MeshSheet(8)),
        preview_size=8,
        log_every=1,
    )


def write(task, *lines):
    resolved(task.prompts).write_text("\n".join(lines) + "\n", "utf-8")


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_dreams_of_a_file(task, tmp_path, capsys):
    home = tmp_path / "dreams"
    write(task, "# one that does not work", "a red dragon", "", "  a blue  cube ")
    with pytest.raises(UserError, match="1 of 2 prompts failed .*'a red dragon': .*'dragon'"):
        task.run(home)
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("[")] == [
        f"[1/2] a red dragon -> {home}/001-a-red-dragon",
        f"[2/2] a blue cube -> {home}/002-a-blue-cube",
    ]
    assert "failed: " in err and "Traceback" not in err
    head, *rows, count = out[out.index("\nprompt ") :].strip().splitlines()[:4]
    assert head.split() == ["prompt", "state", "training", "where"]
    assert [row[: head.index("training")].split() for row in rows] == [
        ["a", "red", "dragon", "failed"],
        ["a", "blue", "cube", "done"],
    ]
    cube = home / "002-a-blue-cube"
    assert rows[1].endswith(f"  {cube}") and count == "1 done, 1 failed"
    assert not (home / "001-a-red-dragon").exists()
    stored = json.loads((cube / CONFIG_FILE).read_text())
    assert (stored["prompt"], stored["prompts"]) == ("a blue cube", "")
    page = (home / "index.html").read_text()
    assert 'src="002-a-blue-cube/mesh.png"' in page and "1 done, 1 failed" in page

    # What is finished is left alone, in its folder, also where the file names it elsewhere.
    before = files_of(cube)
    write(task, "a blue cube")
    task.run(home)
    out = capsys.readouterr().out
    assert files_of(cube) == before and "1 done" in out and "[" not in out
    assert "Prompts: 1 done<" in (home / "index.html").read_text()

    # Another setting makes other runs; the way that a prompt came is no setting.
    with pytest.raises(UserError, match="another run: batch_views is 1 there and 2 here"):
        dataclasses.replace(task, batch_views=2).run(home)
    alone = dataclasses.replace(task, prompts="", prompt="a red ball")
    with pytest.raises(UserError, match="'a blue cube' there and 'a red ball' here; name another"):
        alone.run(cube)
    same = dataclasses.replace(alone, prompt="a blue cube")
    assert same.is_complete(cube)
    (cube / MANIFEST).unlink()
    assert not same.is_complete(cube)


@settings
class Toy:
    """Leaves what a dream would; "b" and "full" break, "c" is interrupted the first time."""

    prompt: str = ""
    prompts: str = ""

    def run(self, workdir):
        """Leave a config."""
        if self.prompts:
            return many.run_prompts(self, workdir, ())
        MADE.append(self.prompt)
        write_text(workdir / CONFIG_FILE, many_config(self))
        if self.prompt == "b":
            raise ZeroDivisionError("of <b>")
        if self.prompt == "full":
            raise FullDisk("no space left to write it")
        if ["a", "b", "c"] == MADE:
            raise KeyboardInterrupt
        write_text(workdir / "done", "")

    def run_all(self, jobs):
        """One after the other."""
        for job in jobs:
            job.begin()
            try:
                job.task.run(job.folder)
            except BaseException as error:
                job.end(error)
                if isinstance(error, KeyboardInterrupt):
                    raise
            else:
                job.end(None)

    def is_complete(self, folder):
        """Whether it was run to its end."""
        return (folder / "done").exists()


MADE: list[str] = []


def many_config(task):
    from dreamjax.config import dumps

    return dumps(task)


def test_an_interrupt_stops_all_and_the_next_start_goes_on(tmp_path, capsys):
    file, home = tmp_path / "p.txt", tmp_path / "home"
    file.write_text("a\nb\nc\nd\n")
    toy = Toy(prompts=str(file))
    with pytest.raises(KeyboardInterrupt):
        toy.run(home)
    out, err = capsys.readouterr()
    told = [line for line in out.splitlines() if line.startswith("[")]
    assert told[0] == f"[1/4] a -> {home}/001-a"
    assert re.fullmatch(r"\[3/4\] c -> .*/003-c \(about \d+ s left\)", told[2])
    assert "stopped at prompt 3 of 4; the same command goes on" in out
    assert "Traceback" in err and "failed: ZeroDivisionError: of <b>" in err
    page = (home / "index.html").read_text()
    assert "1 done, 1 failed, 1 stopped, 1 waiting" in page and "of &lt;b&gt;" in page
    with pytest.raises(UserError, match="1 of 4 prompts failed"):
        toy.run(home)
    assert MADE == ["a", "b", "c", "b", "c", "d"]
    folders = sorted(p.name for p in home.iterdir() if p.is_dir())
    assert folders == ["001-a", "002-b", "003-c", "004-d"]


def test_a_full_disk_is_no_mistake_of_the_users(tmp_path, capsys):
    file = tmp_path / "p.txt"
    file.write_text("full\na\n")
    with pytest.raises(FullDisk, match="1 of 2 prompts failed .* no space left to write it"):
        Toy(prompts=str(file)).run(tmp_path / "home")
    assert (tmp_path / "home" / "002-a" / "done").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_folders_keep_their_prompts(tmp_path):
    def place(prompts):
        folders = many.places(tmp_path, prompts, Toy)
        for folder, prompt in zip(folders, prompts, strict=True):
            write_text(folder / CONFIG_FILE, many_config(Toy(prompt)))
        return [folder.name for folder in folders]

    assert place(["A ball!", "a ball", "红球", "x" * 300]) == [
        "001-a-ball",
        "002-a-ball",
        "003",
        f"004-{'x' * 60}",
    ]
    # Two new ones before: "a ball?" would be 002-a-ball, and that one is taken.
    assert place(["new", "a ball?", "a ball", "红球", "A ball!"]) == [
        "001-new",
        "003-a-ball",
        "002-a-ball",
        "003",
        "001-a-ball",
    ]
    assert many.prompts_of(tmp_path, Dream) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read prompts, .*p.txt: No such file"),
        (b"", "holds no prompts: expected one a line"),
        (b"# a comment\r\n\r\n  \n", "holds no prompts"),
        (b"a cube\n\n#\na ball\na  cube \n", "line 5 repeats line 1: a cube"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
    ],
)
def test_a_file_that_is_of_no_use(tmp_path, capsys, content, says):
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        many.read_prompts(str(path))
    home = tmp_path / "home"
    args = ["main", "--config=toybox", f"--config.prompts={path}", f"--workdir={home}"]
    assert main_lib.main(args) == 2 and not home.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_what_may_change_in_a_folder_of_many(task, tmp_path):
    write(task, "a red ball")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds thesis.tex"):
        task.run(tmp_path)
    assert {"exports", "surface", "log_every"} <= set(Dream.HARMLESS)


def test_prompts_are_read_as_they_are_meant(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red ball\r\n# no\r\n  an  egg #2  \r\nein Würfel".encode())
    assert many.read_prompts(str(path)) == ["a red ball", "an egg #2", "ein Würfel"]
