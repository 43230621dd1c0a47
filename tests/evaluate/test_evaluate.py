import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import tables, truth
from dreamjax.evaluate.prompts import PROMPTS, parse
from dreamjax.evaluate.scores import Count
from dreamjax.nets.probe import Probe
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox as toybox_prior
from dreamjax.scene.camera import VIEW_WORDS, CameraConfig, view_index
from dreamjax.scene.shading import ShadingConfig
from dreamjax.tasks import evaluate
from dreamjax.toybox.captions import MAX_WORDS, VOCABULARY
from dreamjax.toybox.draw import is_held_out
from dreamjax.toybox.kinds import KINDS

from .finished import DREAM, finish


@pytest.fixture
def probe():
    """An untrained probe which says that it can tell the sides of all kinds but the ball apart."""
    config = probes.make_config(channels=(8, 16), blocks=(0, 0), hidden=8)
    blank = jnp.zeros((1, probes.SIZE, probes.SIZE, 3))
    params = jax.jit(Probe(config).init)(jax.random.key(0), blank)["params"]
    views = {kind.name: [3 if kind.name == "ball" else 9, 10] for kind in KINDS}
    return probes.Shipped(config, params, {"view_by_kind": views})


def test_cameras_see_the_view_that_was_asked_for():
    views = jnp.arange(200) % 4
    keys = jax.random.split(jax.random.key(0), 200)
    see = jax.jit(jax.vmap(lambda k, v: truth.camera_seeing(k, v, CameraConfig())))
    cameras = see(keys, views)
    np.testing.assert_array_equal(view_index(cameras.azimuth, cameras.elevation), views)
    assert len(np.unique(np.asarray(cameras.azimuth))) == 200


def test_coloured_looks_keep_their_proportion():
    # Of 100 pictures 40 show albedo, 36 are shaded and 24 textureless.
    look = truth.colored(ShadingConfig(shaded=0.6, textureless=0.4))
    assert look.textureless == 0.0 and look.shaded == pytest.approx(36 / 76)


# What captions end in, and which of the probe's views it means.
ENDINGS = {
    **{
        f"{side} {end}": side
        for side in ("front", "side", "back")
        for end in ("view", "view from above", "top view")
    },
    **{f"{start}from the {side}": side for side in ("front", "side") for start in ("", "seen ")},
    **{"seen from the back": "back", "from behind": "back"},
    **dict.fromkeys(("overhead view", "from above", "seen from above"), "overhead"),
}


def test_random_captions_say_what_their_labels_say():
    texts, labels = evaluate.random_captions(jax.random.key(3), 200)
    for text, kind, first, second, view in zip(texts, *labels, strict=True):
        assert parse(text) == (kind, first, second) and is_held_out(kind, first, second)
        said = max((end for end in ENDINGS if text.endswith(f" {end}")), key=len)
        assert ENDINGS[said] == VIEW_WORDS[view], (text, view)
        assert view == 3 or " and side " not in text
    assert len(set(zip(*labels, strict=True))) > 80


def row(name, held_out, tellable, kind, view):
    counts = {head: Count(0, 0) for head in tables.HEADS}
    ceiling = {**counts, "kind": Count(4, 4), "view": Count(3, 4)}
    return tables.Score(name, held_out, tellable, {**counts, "kind": kind, "view": view}, ceiling)


def test_totals_are_by_split_and_leave_out_views_that_nobody_can_tell():
    rows = [
        row("a", False, True, Count(3, 4), Count(2, 4)),
        row("b", False, False, Count(4, 4), Count(1, 4)),
        row("c", True, True, Count(1, 4), Count(4, 4)),
    ]
    trained = tables.sum_split("trained prompts", rows, False)
    assert trained.counts["kind"] == Count(7, 8) and trained.counts["view"] == Count(2, 4)
    assert trained.ceiling["kind"] == Count(8, 8) and trained.ceiling["view"] == Count(3, 4)
    text = tables.totals([trained], tables.HEADS, "samples")
    assert "| trained prompts: samples | 87.5 % (7/8) | - | - | - | 50.0 % (2/4) |" in text
    assert "| trained prompts: ceiling | 100.0 % (8/8) | - | - | - | 75.0 % (3/4) |" in text
    text = tables.details(rows, tables.HEADS, "samples")
    assert "| b | 4/4 (4/4) | - | - | - | 1/4 (3/4) \\* |" in text
    assert "| c (held out) | 1/4 (4/4) | - | - | - | 4/4 (3/4) |" in text


@pytest.mark.slow
def test_the_whole_task(monkeypatch, tmp_path, probe, capsys):
    prompts = PROMPTS[::7]
    monkeypatch.setattr(evaluate, "PROMPTS", prompts)
    probes.save(tmp_path / "probe.safetensors", probe)
    unet = UNetConfig(channels=8, channel_mults=(1, 2), down_blocks=(1,), up_blocks=(1,))
    unet = UNetConfig(**{**vars(unet), "middle_blocks": 1, "head_dim": 8, "text_dim": 16})
    text = TextConfig(vocabulary_size=len(VOCABULARY), length=MAX_WORDS, dim=16, layers=1, heads=2)
    prior = toybox_prior.ToyboxPrior(unet, text, VOCABULARY)
    toybox_prior.save(tmp_path / "prior.safetensors", prior, prior.init(jax.random.key(0)))
    dreams = tmp_path / "dreams"
    finish(dreams / "a-red-mug", DREAM)
    finish(dreams / "begun", DREAM, step=2)
    (dreams / "other").mkdir()
    (dreams / "other" / "config.json").write_text('{"task": "dream", "prompt": "a chair"}')
    config = {
        "task": "evaluate",
        "weights": str(tmp_path / "prior.safetensors"),
        "probe": str(tmp_path / "probe.safetensors"),
        "samples": {"per_view": 1, "random": 8, "steps": 2},
        "eval": {"dreams": str(dreams), "size": 32, "truths": 1, "silhouettes": 8},
        "dream": {},
    }
    evaluate.run(config, str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "scores.md").read_text() in printed
    assert "random held-out captions: ceiling" in printed
    assert "begun is not finished: step 2 of 3" in printed
    assert "other: no caption of the toybox with a colour: a chair" in printed
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    of = {row["name"]: row["counts"]["kind"][1] for row in found["samples"]}
    assert of == {
        "trained prompts": 8,
        "held-out prompts": 4,
        "random held-out captions": 8,
        **dict.fromkeys(prompts, 4),
    }
    (score,) = found["dreams"]
    assert score["name"] == "a red mug" and score["held_out"]
    assert {head: n for head, (_, n) in score["counts"].items()} == {
        **dict.fromkeys(("kind", "first", "second", "object", "view", "geometry"), 8),
        **dict.fromkeys(("mesh_object", "mesh_geometry"), 8),
        "faces": 6,
        **{head: score["counts"][head][1] for head in ("solid", "silhouette")},
    }
    assert 0 <= score["counts"]["solid"][0] <= score["counts"]["solid"][1] < 8 * 32 * 32
    ceiling = score["ceiling"]["solid"]
    assert 0.5 < ceiling[0] / ceiling[1] < 1.0  # ground truth has an outline, but no haze
    fog, mug = (Count(*score[of]["silhouette"]).share for of in ("counts", "ceiling"))
    assert fog < 0.8 < mug < 1.0
    assert np.sum(found["views"]["dreams"], axis=1).tolist() == [2, 4, 2, 0]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"eval": {"dreams": "/nowhere/dreams"}}, "eval.dreams is /nowhere/dreams"),
        ({"eval": {"elevation": 75.0}}, "eval.elevation is 75"),
        ({"eval": {"silhouettes": 0}}, "eval.silhouettes is 0: expected at least 1"),
        ({"probe": "/nowhere/probe.safetensors"}, "cannot read weights"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, probe, change, says):
    probes.save(tmp_path / "probe.safetensors", probe)
    config = {
        "task": "evaluate",
        "probe": str(tmp_path / "probe.safetensors"),
        "samples": {"per_view": 0, "random": 0},
        "dream": {},
    }
    with pytest.raises(UserError, match=says):
        evaluate.run({**config, **change}, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
