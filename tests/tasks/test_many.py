"""Many prompts in one go: real dreams of a network that nobody trained, and what may go wrong."""

import json
import re
from pathlib import Path

import jax
import pytest

from dreamjax import main as main_lib
from dreamjax.errors import UserError
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox as toybox_prior
from dreamjax.tasks import dream, many
from dreamjax.toybox.captions import VOCABULARY

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOYBOX = Path(__file__).resolve().parents[2] / "configs" / "toybox.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The smallest of dreams, of two steps."""
    folder = tmp_path_factory.mktemp("many")
    unet = UNetConfig(
        channels=8,
        channel_mults=(1, 2),
        down_blocks=(1,),
        up_blocks=(1,),
        middle_blocks=1,
        attention_levels=(),
        head_dim=8,
        text_dim=8,
    )
    text = TextConfig(len(VOCABULARY), dim=8, layers=1, heads=1)
    prior = toybox_prior.ToyboxPrior(unet, text, VOCABULARY, image_size=8)
    toybox_prior.save(folder / "tiny.safetensors", prior, jax.jit(prior.init)(jax.random.key(3)))
    return dict(
        task="dream",
        prompt="",
        prompts=str(folder / "prompts.txt"),
        steps=2,
        albedo_steps=2,
        batch_views=1,
        weights=str(folder / "tiny.safetensors"),
        render_size=((0.0, 8),),
        field=dict(width=8, blocks=1),
        render=dict(samples=8, normal_samples=2),
        export=dict(
            views_size=8,
            preview_size=8,
            video_frames=2,
            video_size=16,
            mesh=dict(resolution=16),
        ),
        log_every=1,
    )


def write(config, *lines):
    Path(config["prompts"]).write_text("\n".join(lines) + "\n", "utf-8")


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_dreams_of_a_file(config, tmp_path, capsys):
    home = tmp_path / "dreams"
    write(config, "# one that does not work", "a red dragon", "", "  a blue  cube ")
    with pytest.raises(UserError, match="1 of 2 prompts failed .*'a red dragon': .*'dragon'"):
        dream.run(config, home)
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
    stored = json.loads((cube / "config.json").read_text())
    assert stored["prompt"] == "a blue cube" and set(config) - set(stored) == {"prompts"}
    page = (home / "index.html").read_text()
    assert 'src="002-a-blue-cube/mesh.png"' in page and "1 done, 1 failed" in page

    # What is finished is left alone, in its folder, also where the file names it elsewhere.
    before = files_of(cube)
    write(config, "a blue cube")
    dream.run(config, home)
    out = capsys.readouterr().out
    assert files_of(cube) == before and "1 done" in out and "[" not in out
    assert "Prompts: 1 done<" in (home / "index.html").read_text()

    # Another setting makes other runs; the way that a prompt came is no setting.
    with pytest.raises(UserError, match="another run: steps is 2 there and 4 here"):
        dream.run({**config, "steps": 4}, home)
    alone = {**config, "prompt": "a red ball", "prompts": ""}
    with pytest.raises(UserError, match='"a blue cube" there and "a red ball" here; name another'):
        dream.run(alone, cube)
    assert many.finished(cube, stored)
    (cube / "mesh.glb").unlink()
    assert not many.finished(cube, stored)


def test_an_interrupt_stops_all_and_the_next_start_goes_on(config, tmp_path, capsys):
    write(config, "a", "b", "c", "d")
    made = []

    def make(settings, folder):
        """Leave what a dream would; "b" breaks, and "c" is interrupted the first time."""
        made.append(settings["prompt"])
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(settings))
        if settings["prompt"] == "b":
            raise ZeroDivisionError("of <b>")
        if made == ["a", "b", "c"]:
            raise KeyboardInterrupt
        (folder / "mesh.glb").write_bytes(b"")
        (folder / "report.html").write_bytes(b"")

    with pytest.raises(KeyboardInterrupt):
        many.run_prompts(config, tmp_path, make, ())
    out, err = capsys.readouterr()
    told = [line for line in out.splitlines() if line.startswith("[")]
    assert told[0] == f"[1/4] a -> {tmp_path}/001-a"
    assert re.fullmatch(r"\[3/4\] c -> .*/003-c \(about \d+ s left\)", told[2])
    assert "stopped at prompt 3 of 4; the same command goes on" in out
    assert "Traceback" in err and "failed: ZeroDivisionError: of <b>" in err
    page = (tmp_path / "index.html").read_text()
    assert "1 done, 1 failed, 1 stopped, 1 waiting" in page and "of &lt;b&gt;" in page
    with pytest.raises(UserError, match="1 of 4 prompts failed"):
        many.run_prompts(config, tmp_path, make, ())
    assert made == ["a", "b", "c", "b", "c", "d"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "001-a",
        "002-b",
        "003-c",
        "004-d",
    ]


def test_folders_keep_their_prompts(tmp_path):
    def place(prompts):
        folders = many.places(tmp_path, prompts)
        for folder, prompt in zip(folders, prompts, strict=True):
            folder.mkdir(exist_ok=True)
            settings = dict(task="dream", prompt=prompt)
            (folder / "config.json").write_text(json.dumps(settings))
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
    args = ["main", f"--config={TOYBOX}", f"--config.prompts={path}", f"--workdir={home}"]
    assert main_lib.main(args) == 2 and not home.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_and_a_prompt(config, tmp_path):
    write(config, "a red ball")
    with pytest.raises(UserError, match="prompt is 'a cube' and prompts is '.*': give one"):
        dream.run({**config, "prompt": "a cube"}, tmp_path / "home")
    assert not (tmp_path / "home").exists()
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds thesis.tex"):
        dream.run(config, tmp_path)


def test_prompts_are_read_as_they_are_meant(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red ball\r\n# no\r\n  an  egg #2  \r\nein Würfel".encode())
    assert many.read_prompts(str(path)) == ["a red ball", "an egg #2", "ein Würfel"]
