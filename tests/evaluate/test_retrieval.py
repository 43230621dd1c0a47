"""R-Precision of runs: which are scored, what is rendered of them, and what is told of the rest."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.evaluate import retrieval
from dreamjax.evaluate.r_precision import AZIMUTHS, ELEVATION
from dreamjax.evaluate.retrieval import Retrieval
from dreamjax.evaluate.runs import FinishedRun
from dreamjax.scene.camera import Cameras
from dreamjax.scene.render import Rendering

COLORS = {"a red ball": (1.0, 0.0, 0.0), "a green tree": (0.0, 1.0, 0.0), "a blue cube": (0, 0, 1)}


def run_of(prompt, seen=None):
    """A run whose pictures have one colour, and are white where they are textureless."""

    def render(camera, shading, behind, size):
        if seen is not None:
            seen.append((camera, shading, behind, size))
        color = jnp.where(shading.textureless[:, None] > 0.5, 1.0, jnp.array(COLORS[prompt]))
        rgb = jnp.broadcast_to(color[:, None, None], (len(color), size, size, 3))
        flat = rgb[..., 0]
        return Rendering(rgb, rgb, rgb, flat, flat, flat)

    return FinishedRun(prompt, Cameras(), render)


class MeanColor:
    """The mean colour of a picture, and the colour that a caption names."""

    def embed_texts(self, params, texts):
        return jnp.array([COLORS[text] for text in texts]) * params

    def image_features(self, params, rgb):
        return rgb.mean((1, 2)) * params


def test_runs_are_found_by_colour_and_not_by_geometry():
    runs = {Path(f"runs/{i}"): prompt for i, prompt in enumerate([*COLORS, "a red ball"])}
    seen = []
    scores = retrieval.score(
        Retrieval(("mean",), "unused", size=5),
        list(COLORS),
        runs,
        lambda place: run_of(runs[place], seen),
        {"mean": (MeanColor(), 2.0)},
    )
    (row,) = scores.rows
    assert row.clip == "mean" and row.color.share == 1.0
    assert row.color[2:] == (3, 4, 32, 3)
    assert row.geometry.share == pytest.approx(1 / 3)  # white is as near to all: the first is taken
    assert not scores.skipped and "| mean | 100.0" in retrieval.page(scores)
    camera, shading, behind, size = seen[0]
    np.testing.assert_allclose(camera.azimuth, AZIMUTHS)
    np.testing.assert_allclose(camera.elevation, ELEVATION)
    assert (behind == 1.0).all() and size == 5
    assert [float(s.textureless[0]) for _, s, _, _ in seen] == [0.0, 1.0] * 4


def test_runs_without_a_score_are_named():
    runs = {Path("runs/a"): "a red ball", Path("runs/b"): "a cow", Path("runs/c"): "a blue cube"}

    def load(place):
        if place.name == "c":
            raise UserError("it is not finished")
        return run_of(runs[place])

    def score(runs):
        clips = {"mean": (MeanColor(), 1.0)}
        return retrieval.score(Retrieval(size=4), list(COLORS), runs, load, clips)

    scores = score(runs)
    assert scores.skipped == [
        "b: the prompt 'a cow' is not in the list of captions",
        "c: it is not finished",
    ]
    assert "- c: it is not finished" in retrieval.page(scores)
    with pytest.raises(UserError, match="no run can be scored: c: it is not finished"):
        score({Path("runs/c"): "a blue cube"})
    with pytest.raises(UserError, match="the folder holds none"):
        score({})


def test_captions_come_from_a_file(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\ufeff# two of them\na red ball\n\na blue cube\n", "utf-8")
    assert retrieval.read_captions(str(path)) == ["a red ball", "a blue cube"]
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot read retrieval.captions"):
        retrieval.read_captions(str(path))
    with pytest.raises(UserError, match="captions is empty"):
        retrieval.read_captions("")
