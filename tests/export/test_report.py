"""The page holds everything, and nothing in it reaches outside."""

import base64
import hashlib
import re

import numpy as np
import pytest
import trimesh

from dreamjax.export.gltf import Mesh
from dreamjax.export.mesh import write_mesh
from dreamjax.export.report import Page, duration, flatten, page_html
from dreamjax.export.sheet import write_png
from dreamjax.export.video import write_video

EVIL = """<script>alert('x')</script> "onload='y' </title>&amp;"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    shape = trimesh.creation.icosphere(2)
    colors = np.full(shape.vertices.shape, 0.5)
    mesh = Mesh(shape.vertices, shape.faces, shape.vertices, colors)
    write_mesh(folder / "mesh.glb", mesh)
    write_video(folder / "turntable.mp4", np.full((4, 64, 64, 3), 90, np.uint8))
    write_png(folder / "views.png", np.full((30, 40, 3), 7, np.uint8))
    return folder


@pytest.fixture(scope="module")
def html(files):
    content = Page(
        prompt=EVIL,
        seconds=425.2,
        settings={"seed": 0, "field": {"width": 64, EVIL: EVIL}},
        steps=range(5),
        curves={
            "opacity": [0.1, 0.2, 0.3, 0.35, 0.36],
            "gradient norm": [1e-3, 1.0, 10.0, float("nan"), 2.0],
            EVIL: [0.0] * 5,
        },
        facts={"device": EVIL},
        mesh=files / "mesh.glb",
        turntable=files / "turntable.mp4",
        views=files / "views.png",
    )
    return page_html(content)


def test_everything_is_in_it(html, files, parse):
    page = parse(html)
    embedded = {
        "mesh.glb": page.find("a")[0]["href"],
        "turntable.mp4": page.find("video")[0]["src"],
        "views.png": page.find("img")[0]["src"],
    }
    for name, url in embedded.items():
        kind, data = url.split(",")
        assert kind.startswith("data:") and kind.endswith(";base64")
        assert base64.b64decode(data) == (files / name).read_bytes()
    assert page.text["h1"] == EVIL
    assert page.text["title"].startswith(EVIL)
    assert "time: 7 min 5 s" in page.text["p"]
    assert "field.width" in page.text["th"] and "64" in page.text["td"]
    assert len(page.find("svg")) == 3
    assert "Blender" in page.text["p"]
    assert page.find("canvas")[0]["id"] == "mesh-view"


def test_nothing_in_it_reaches_outside(html, parse):
    page = parse(html)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "data", "action", "background"):
            assert attributes.get(name, "data:").startswith("data:")
        assert (
            not {"http-equiv", "content"} <= attributes.keys()
            or "default-src 'none'" in (attributes["content"])
        )
    without_data = re.sub(r"data:[\w/-]+;base64,[\w+/=]+", "", html)
    for word in ("://", "url(", "@import", "fetch(", "import(", "XMLHttpRequest", "WebSocket"):
        assert word not in without_data
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {n for n, _ in page.tags}


def test_the_policy_allows_the_viewer_alone(html):
    script = re.search(r"<script>(.*)</script>", html, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_text_from_the_user_stays_text(html, parse):
    page = parse(html)
    assert len(page.find("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert('x')" not in html


def test_curves_lie_where_their_values_are(html, parse):
    lines = [attributes["points"] for attributes in parse(html).find("polyline")]
    opacity = np.array([point.split(",") for point in lines[0].split()], float)
    np.testing.assert_allclose(opacity[:, 0], [0, 85, 170, 255, 340])
    np.testing.assert_allclose(
        opacity[:, 1], 130 * (1 - np.array([0, 10, 20, 25, 26]) / 26), 0, 0.1
    )
    gradient = np.array([point.split(",") for point in lines[1].split()], float)
    assert len(gradient) == 4  # what is not finite is left out
    np.testing.assert_allclose(gradient[:2, 1], [130.0, 32.5], atol=0.1)  # logarithmic
    assert "gradient norm (logarithmic): 2 at the end" in html


def test_long_curves_are_thinned_and_keep_their_end(parse):
    html = page_html(
        Page("x", 1.0, {}, steps=range(5003), curves={"a": np.arange(5003, dtype=float)})
    )
    points = parse(html).find("polyline")[0]["points"].split()
    assert len(points) <= 402 and points[-1] == "340.0,0.0"


def test_a_run_without_mesh_says_why(parse):
    page = parse(page_html(Page("x", 1.0, {}, missing="no mesh: <empty> field")))
    assert "no mesh: <empty> field" in page.text["div"]
    assert not page.find("script") and not page.find("canvas") and not page.find("video")


def test_durations_read_well():
    assert [duration(s) for s in (0.4, 59.4, 425.2, 5400.0)] == [
        "0 s",
        "59 s",
        "7 min 5 s",
        "1 h 30 min",
    ]


def test_settings_are_flattened_and_so_are_lists_of_parts():
    assert flatten({"a": 1, "b": {"c": {"d": (1, 2)}, "e": None}}) == {
        "a": 1,
        "b.c.d": (1, 2),
        "b.e": None,
    }
    parts = [{"class": "a:Opacity", "weight": {"end": 0.5}}, {"class": "a:Entropy", "on": [1, 2]}]
    assert flatten({"penalties": parts, "empty": [], "none": {}}) == {
        "penalties.0.class": "a:Opacity",
        "penalties.0.weight.end": 0.5,
        "penalties.1.class": "a:Entropy",
        "penalties.1.on": [1, 2],
        "empty": [],
    }
