"""Everything about one object, exported by everything there is."""

import base64
import dataclasses
import json
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from PIL import Image

from dreamjax.config import choose, from_plain, part_names, to_plain
from dreamjax.errors import FullDisk, UserError
from dreamjax.export.base import MANIFEST, Exporter, export_all
from dreamjax.export.glb import Glb
from dreamjax.export.gltf import linear_to_srgb
from dreamjax.export.mesh_sheet import MeshSheet
from dreamjax.export.obj import Obj
from dreamjax.export.object3d import Record
from dreamjax.export.ply import Ply
from dreamjax.export.report import Report
from dreamjax.export.turntable import Turntable
from dreamjax.export.views import Views
from dreamjax.scene.camera import Cameras
from dreamjax.settings import Home, field_docs, settings

FILES = {
    "views": ["views.png"],
    "glb": ["mesh.glb"],
    "obj": ["mesh.obj"],
    "ply": ["mesh.ply"],
    "mesh_sheet": ["mesh.png"],
    "turntable": ["turntable.mp4"],
    "report": ["report.html"],
}
SMALL = (Glb(), Ply(), MeshSheet(size=8), Report())


@settings
class Note:
    """A toy exporter: the prompt as a text file."""

    name: str = "note.txt"  # of the file

    def __call__(self, result, folder):
        path = folder / self.name
        path.write_text(result.prompt)
        return [path]


@settings
class Broken:
    """A toy exporter that fails."""

    defect: bool = False  # in the code, or in what the user wants

    def __call__(self, result, folder):
        raise IndexError("a defect") if self.defect else UserError("no such\nformat")


@settings
class Greedy:
    """A toy exporter that asks for 128 TiB."""

    def __call__(self, result, folder):
        return jnp.zeros(1 << 45, jnp.float32).block_until_ready()


@settings
class Full:
    """A toy exporter for which there is no space."""

    def __call__(self, result, folder):
        raise FullDisk("no space left to write x")


def read_manifest(folder):
    return json.loads((folder / MANIFEST).read_text("utf-8"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory, make_object):
    """The folder and what was said."""
    folder, said = tmp_path_factory.mktemp("run") / "new", []
    record = Record(
        history=[{"step": i, "opacity": 0.1 * i, "loss": 1.0} for i in range(1, 6)],
        settings={
            "prompt": "two balls",
            "cameras": to_plain(Cameras()),
            "exports": [to_plain(Glb())],
        },
        seconds=61.0,
        facts={"front found at": "90 degrees"},
    )
    # The report is asked for first and yet has all the others in it.
    exporters = (Report(), Views(size=64), Glb(), Obj(), Ply(), MeshSheet(size=64))
    exporters += (Turntable(frames=6, size=48, fps=12),)
    export_all(make_object(record=record), exporters, folder, said.append)
    return folder, said


def test_all_files_are_there_and_in_the_manifest(everything):
    folder, _ = everything
    manifest = read_manifest(folder)
    assert manifest["prompt"] == "two balls"
    assert manifest["exports"] == {name: {"files": files} for name, files in FILES.items()}
    assert list(manifest["exports"])[-1] == "turntable"
    assert manifest["settings"]["cameras"]["distance"] == [2.8, 3.4]
    made = {name for names in FILES.values() for name in names} | {MANIFEST}
    assert {path.name for path in folder.iterdir()} == made


def test_what_takes_time_is_said_before_and_what_is_written_after(everything):
    folder, said = everything
    assert said == [
        "rendering the views ...",
        f"wrote {folder / 'views.png'}",
        "taking the mesh from the field ...",
        f"wrote {folder / 'mesh.glb'}",
        f"wrote {folder / 'mesh.obj'}",
        f"wrote {folder / 'mesh.ply'}",
        f"wrote {folder / 'mesh.png'}",
        f"wrote {folder / 'report.html'}",
        "rendering the turntable, 6 pictures ...",
        f"wrote {folder / 'turntable.mp4'}",
        f"wrote {folder / 'report.html'}",  # again, with the video
    ]


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_meshes_are_closed_and_have_the_colours_of_the_balls(everything, suffix, colours):
    path = everything[0] / f"mesh.{suffix}"
    if suffix == "glb":
        (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
        colors = linear_to_srgb(mesh.visual.vertex_attributes["color"][:, :3] / 255.0)
    else:
        mesh = trimesh.load_mesh(path, process=False, maintain_order=True)
        colors = mesh.visual.vertex_colors[:, :3] / 255.0
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    forward = 0 if suffix == "ply" else 2
    front, back = mesh.vertices[:, forward].argmax(), mesh.vertices[:, forward].argmin()
    assert mesh.vertices[front, forward] == pytest.approx(0.85, abs=0.02)
    assert mesh.vertices[back, forward] == pytest.approx(-0.5, abs=0.02)
    np.testing.assert_allclose(colors[front], colours[1], atol=0.03)
    np.testing.assert_allclose(colors[back], colours[0], atol=0.03)


def test_the_sheets_show_the_same_object(everything):
    folder, _ = everything
    views = np.asarray(Image.open(folder / "views.png")).astype(float)
    mesh = np.asarray(Image.open(folder / "mesh.png")).astype(float)
    for column in range(9):
        # Rows of views.png begin at 21; both sheets enlarge their pictures to 128 pixels.
        field = views[21 : 21 + 128, 64 + column * 132 :][:, :128]
        surface = mesh[4 : 4 + 128, 4 + column * 132 :][:, :128]
        assert np.abs(field - surface).mean() < 6.0
        assert (field.min(-1) < 128).mean() > 0.1


def test_the_video_turns_round(everything, decode):
    frames = decode(everything[0] / "turntable.mp4", 288, 288).astype(int)
    assert len(frames) == 6
    blue = ((frames[..., 2] - frames[..., 0]) > 60).mean((1, 2))
    assert blue.argmax() == 0 and blue[3] < 0.2 * blue[0]
    # The front ball moves to the left of the picture, is hidden, and comes back from the right.
    places = [np.nonzero(f[..., 2] - f[..., 0] > 60)[1].mean() for f in frames[[1, 5]]]
    assert places[0] < 120 and places[1] > 168


def test_the_report_embeds_the_others(everything, parse):
    folder, _ = everything
    page = parse((folder / "report.html").read_text("utf-8"))
    for name, url in (
        ("mesh.glb", page.find("a")[0]["href"]),
        ("turntable.mp4", page.find("video")[0]["src"]),
        ("views.png", page.find("img")[0]["src"]),
    ):
        assert base64.b64decode(url.split(",")[1]) == (folder / name).read_bytes()
    assert "time: 1 min 1 s" in page.text["p"] and "front found at: 90 degrees" in page.text["p"]
    assert len(page.find("svg")) == 1  # opacity; this run has logged no other that is asked for
    assert "cameras.distance" in page.text["th"] and "exports.0.class" in page.text["th"]


def test_a_failing_exporter_leaves_the_others_files(tmp_path, make_object):
    said = []
    with pytest.raises(UserError, match=r"^broken failed: no such format$"):
        export_all(make_object(), (Broken(), *SMALL, Note()), tmp_path, said.append)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"mesh.glb", "mesh.ply", "mesh.png", "report.html", "note.txt", MANIFEST}
    exports = read_manifest(tmp_path)["exports"]
    assert exports["broken"] == {"files": [], "error": "no such format"}
    assert exports["note"] == {"files": ["note.txt"]} and exports["glb"] == {"files": ["mesh.glb"]}
    assert said[0] == "broken failed: no such format"


def test_a_defect_is_raised_as_it_is_when_all_else_is_written(tmp_path, make_object):
    with pytest.raises(IndexError, match="a defect"):
        export_all(make_object(), (Broken(), Broken(defect=True), Note()), tmp_path, list)
    assert (tmp_path / "note.txt").exists()
    assert read_manifest(tmp_path)["exports"] == {
        "0": {"files": [], "error": "no such format"},
        "1": {"files": [], "error": "IndexError: a defect"},
        "2": {"files": ["note.txt"]},
    }


def test_too_little_memory_on_a_device_is_no_defect(tmp_path, make_object):
    with pytest.raises(UserError, match="greedy failed: .*RESOURCE_EXHAUSTED"):
        export_all(make_object(), (Greedy(), Note()), tmp_path, list)
    assert (tmp_path / "note.txt").exists()


def test_no_surface_is_told_in_a_line_each_and_on_the_page(tmp_path, make_object, parse):
    (tmp_path / "mesh.glb").write_text("of another time")
    empty = make_object(lambda mean, var: (mean[..., 0] * 0.0 + 0.01, mean * 0.0))
    said = []
    with pytest.raises(UserError, match="^glb, obj, ply, mesh_sheet failed: no mesh: the field is"):
        export_all(empty, (Glb(), Obj(), Ply(), MeshSheet(), Report()), tmp_path, said.append)
    told = [line for line in said if "failed: no mesh: the field is empty" in line]
    assert [line.split()[0] for line in told] == ["glb", "obj", "ply", "mesh_sheet"]
    assert not any("\n" in line for line in said)
    exports = read_manifest(tmp_path)["exports"]
    assert [name for name in exports if "error" in exports[name]] == [
        "glb",
        "obj",
        "ply",
        "mesh_sheet",
    ]
    page = parse((tmp_path / "report.html").read_text("utf-8"))
    assert "no mesh: the field is empty" in page.text["div"] and not page.find("canvas")


def test_the_report_alone_says_that_there_is_no_mesh_and_takes_none(tmp_path, make_object, parse):
    thing = make_object()
    export_all(thing, (Report(),), tmp_path, list)
    page = parse((tmp_path / "report.html").read_text("utf-8"))
    assert "no mesh was exported" in page.text["div"]
    assert "_extraction" not in vars(thing)


def test_a_second_export_overwrites_only_its_own_files(tmp_path, make_object):
    export_all(make_object(), (Note(), Ply(), Glb()), tmp_path, list)
    (tmp_path / "mine.txt").write_text("kept")
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    export_all(make_object(), (Glb(),), tmp_path, list)
    after = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"mesh.glb", MANIFEST}
    assert read_manifest(tmp_path)["exports"] == {"glb": {"files": ["mesh.glb"]}}


def test_an_interrupted_export_leaves_no_new_manifest(tmp_path, make_object):
    export_all(make_object(), (Note(),), tmp_path, list)
    before = (tmp_path / MANIFEST).read_bytes()

    def interrupted(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_all(make_object(), (Glb(),), tmp_path, interrupted)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_video_that_fails_costs_nothing(tmp_path, make_object, monkeypatch, parse):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    exporters, said = (Turntable(3, 16), Glb(), Report()), []
    with pytest.raises(UserError, match="^turntable failed: .*IMAGEIO_FFMPEG_EXE is /nowhere"):
        export_all(make_object(), exporters, tmp_path, said.append)
    assert [line for line in said if "failed" in line] == said[-2:-1]
    assert {path.name for path in tmp_path.iterdir()} == {"mesh.glb", "report.html", MANIFEST}
    exports = read_manifest(tmp_path)["exports"]
    assert ["error" in exports[name] for name in ("turntable", "glb", "report")] == [True, 0, 0]
    page = parse((tmp_path / "report.html").read_text("utf-8"))
    assert page.find("canvas") and not page.find("video")


def test_a_full_disk_stays_one(tmp_path, make_object):
    with pytest.raises(FullDisk, match="^full failed: no space left to write x"):
        export_all(make_object(), (Full(),), tmp_path, list)


def test_no_frames_are_no_video(tmp_path, make_object):
    export_all(make_object(), (Turntable(frames=0),), tmp_path, list)
    assert read_manifest(tmp_path)["exports"] == {"turntable": {"files": []}}
    assert not (tmp_path / "turntable.mp4").exists()


def test_a_large_mesh_stays_outside_of_the_page(tmp_path, monkeypatch, make_object, parse):
    monkeypatch.setattr("dreamjax.export.report.EMBED_BYTES", 1000)
    export_all(make_object(), (Glb(), Report()), tmp_path, list)
    page = parse((tmp_path / "report.html").read_text("utf-8"))
    assert "open the file itself" in page.text["div"]


@settings
class Task:
    """A toy task that exports."""

    exports: Annotated[tuple[Exporter, ...], Home("dreamjax.export")] = ()  # what it leaves behind


def test_every_exporter_is_found_by_its_name_and_is_explained():
    parts = choose(Task(), "exports", ",".join(FILES))
    assert part_names(parts) == list(FILES)
    for part in parts:
        assert all(field_docs(type(part)).get(f.name) for f in dataclasses.fields(part))
        assert from_plain(to_plain(part)) == part


@pytest.mark.parametrize("part", [Views, MeshSheet, Turntable])
@pytest.mark.parametrize("value", [0, -1, 10**6, 10**9, 9.5, True])
def test_sizes_that_cannot_be_are_refused(part, value):
    with pytest.raises(UserError, match="^size is "):
        part(size=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("frames", v) for v in (-1, 10_001, 10**6)] + [("fps", v) for v in (0, -1, 10**6)],
)
def test_videos_that_cannot_be_are_refused(name, value):
    with pytest.raises(UserError, match=f"^{name} is "):
        Turntable(**{name: value})
