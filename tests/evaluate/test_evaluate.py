"""The task: its scores by split, what it refuses, and how finished runs come in."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import samples, tables, truth
from dreamjax.evaluate.dreams import Dreams
from dreamjax.evaluate.prompts import PROMPTS, parse
from dreamjax.evaluate.retrieval import Retrieval
from dreamjax.evaluate.runs import shots
from dreamjax.evaluate.samples import Samples
from dreamjax.evaluate.scores import Count
from dreamjax.main import load_config
from dreamjax.nets.probe import Probe
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox
from dreamjax.priors.toybox import Toybox
from dreamjax.priors.words import PAPER_VIEWS, view_texts
from dreamjax.scene.camera import Cameras
from dreamjax.scene.shading import Light
from dreamjax.scene.views import VIEW_WORDS, view_index
from dreamjax.tasks import evaluate
from dreamjax.tasks.dream import Dream, picture
from dreamjax.tasks.dream import load as load_dream
from dreamjax.tasks.evaluate import Evaluate
from dreamjax.toybox.captions import MAX_WORDS, VOCABULARY
from dreamjax.toybox.draw import is_held_out
from dreamjax.toybox.kinds import KINDS
from dreamjax.workdir import slug

from .finished import DREAM, finish


@pytest.fixture(scope="module")
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
    see = jax.jit(jax.vmap(lambda k, v: truth.camera_seeing(k, v, Cameras())))
    cameras = see(keys, views)
    np.testing.assert_array_equal(view_index(cameras.azimuth, cameras.elevation), views)
    assert len(np.unique(np.asarray(cameras.azimuth))) == 200


def test_coloured_looks_keep_their_proportion():
    # Of 100 pictures 40 show albedo, 36 are shaded and 24 textureless.
    look = truth.colored(Light(shaded=0.6, textureless=0.4))
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
    texts, labels = samples.random_captions(jax.random.key(3), 200)
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


def test_prompts_are_sampled_with_the_words_that_dreams_are_told():
    asked = samples.texts_of(Samples(per_view=2, random=3), jax.random.key(0))
    assert len(asked.texts) == len(asked.labels.kind) == 20 * 8 + 3
    texts = asked.texts[asked.rows_of(12)]
    assert texts == 2 * view_texts(PROMPTS[12], PAPER_VIEWS)
    for text, *labels in list(zip(asked.texts, *asked.labels, strict=True))[asked.rows_of(12)]:
        assert parse(text) == tuple(labels[:3]) and VIEW_WORDS[labels[3]] in text
    assert asked.texts[asked.random] == samples.random_captions(jax.random.key(0), 3)[0]


def tiny_prior(path):
    """An untrained prior for the toybox's words."""
    unet = UNetConfig(
        channels=8,
        channel_mults=(1, 2),
        down_blocks=(1,),
        up_blocks=(1,),
        middle_blocks=1,
        head_dim=8,
        text_dim=16,
    )
    text = TextConfig(vocabulary_size=len(VOCABULARY), length=MAX_WORDS, dim=16, layers=1, heads=2)
    net = toybox.ToyboxNet(unet, text, VOCABULARY)
    toybox.save(path, net, net.init(jax.random.key(0)))
    return str(path)


@pytest.mark.slow
def test_the_whole_task(tmp_path, probe, capsys):
    probes.save(tmp_path / "probe.safetensors", probe)
    folder = tmp_path / "dreams"
    finish(folder / "a-red-mug", DREAM)
    finish(folder / "begun", DREAM, step=2)
    finish(folder / "other", dataclasses.replace(DREAM, prompt="a chair"))
    (folder / "old").mkdir()
    (folder / "old" / "config.json").write_text('{"task": "dream", "prompt": "a red mug"}')
    task = Evaluate(
        prior=Toybox(tiny_prior(tmp_path / "prior.safetensors")),
        probe=str(tmp_path / "probe.safetensors"),
        samples=Samples(per_view=1, random=8, steps=2),
        dreams=Dreams(str(folder), size=32, truths=1, silhouettes=8),
    )
    task.run(tmp_path / "out")
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "scores.md").read_text() in printed
    assert "random held-out captions: ceiling" in printed
    assert "begun is not finished: step 2 of 3" in printed
    assert "other: no caption of the toybox with a colour: a chair" in printed
    assert "old/config.json was written by another version" in printed
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    of = {row["name"]: row["counts"]["kind"][1] for row in found["samples"]}
    assert of == {
        "trained prompts": 40,
        "held-out prompts": 40,
        "random held-out captions": 8,
        **dict.fromkeys(PROMPTS, 4),
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
    assert {"samples.png", "dreams.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.usefixtures("quick_compilation")
def test_a_finished_run_looks_as_its_own_pictures_do(tmp_path):
    """Rendered in a batch, and by the same program as a run with another prompt."""
    evaluate._render.clear_cache()
    finish(tmp_path / "done", DREAM)
    finish(tmp_path / "other", dataclasses.replace(DREAM, prompt="a blue cube"))
    done = load_dream(tmp_path / "done")
    camera, shading = shots(DREAM.cameras, (10.0, 200.0), 20.0, False)
    for name in ("done", "other"):
        run = evaluate.finished_run(tmp_path / name)
        seen = run.render(camera, shading, jnp.ones((1, 1, 3)), 12)
    assert evaluate._render._cache_size() == 1
    assert run.prompt == "a blue cube" and run.cameras == DREAM.cameras and run.mesh is None
    for number, azimuth in enumerate((10.0, 200.0)):
        expected = picture(done.task, done.state, 3, azimuth, 20.0, 12)
        for got, wanted in zip(seen, expected, strict=True):
            np.testing.assert_allclose(got[number], wanted, atol=1e-5)


def test_a_finished_run_is_loaded_and_an_unfinished_one_is_refused(tmp_path):
    params = finish(tmp_path / "done", DREAM)
    run = load_dream(tmp_path / "done")
    assert run.task == DREAM
    jax.tree.map(np.testing.assert_array_equal, run.state.scene.params, params)
    finish(tmp_path / "begun", DREAM, step=1)
    with pytest.raises(UserError, match="not finished: step 1 of 3"):
        evaluate.finished_run(tmp_path / "begun")
    with pytest.raises(UserError, match="cannot read"):
        evaluate.finished_run(tmp_path)


@pytest.mark.slow
def test_missing_dreams_are_made_and_others_left_alone(monkeypatch, tmp_path):
    finish(tmp_path / "elsewhere", dataclasses.replace(DREAM, prompt=PROMPTS[0]))
    finish(tmp_path / slug(PROMPTS[1]), dataclasses.replace(DREAM, prompt=PROMPTS[1]), step=1)
    made = []
    monkeypatch.setattr(Dream, "run", lambda task, workdir: made.append((task, workdir)))
    evaluate.make_missing(tmp_path, dataclasses.replace(DREAM, prompt="", prompts="list.txt"))
    assert [task.prompt for task, _ in made] == list(PROMPTS[1:])
    assert made[0] == (
        dataclasses.replace(DREAM, prompt=PROMPTS[1]),
        tmp_path / "a-blue-car-with-a-white-top",
    )


NOTHING = Samples(per_view=0, random=0)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(dreams=Dreams("/nowhere/dreams")), "dreams.folder is /nowhere/dreams"),
        (dict(probe="/nowhere/probe.safetensors"), "cannot read weights"),
        (dict(samples=Samples(), prior=Toybox("/nowhere/prior")), "cannot read weights"),
        (dict(), "nothing to score"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, probe, change, says):
    probes.save(tmp_path / "probe.safetensors", probe)
    task = Evaluate(probe=str(tmp_path / "probe.safetensors"), samples=NOTHING)
    with pytest.raises(UserError, match=says):
        dataclasses.replace(task, **change).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_captions_and_clips_are_read_before_anything_is_written(tmp_path):
    def task(**values):
        return Evaluate(
            samples=NOTHING,
            dreams=Dreams(str(tmp_path)),
            retrieval=Retrieval(("/nowhere/clip",), **values),
        )

    with pytest.raises(UserError, match="captions is empty"):
        task().run(tmp_path / "out")
    with pytest.raises(UserError, match="cannot read retrieval.captions, '/nowhere/list'"):
        task(captions="/nowhere/list").run(tmp_path / "out")
    (tmp_path / "list").write_text("a\nb\n")
    with pytest.raises(UserError, match="/nowhere/clip"):
        task(captions=str(tmp_path / "list")).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: Dreams(elevation=60.0), "elevation is 60.0: expected above 0 and below 60"),
        (lambda: Dreams(elevation=0.0), "elevation is 0.0"),
        (lambda: Dreams(silhouettes=0), "silhouettes is 0: expected at least 1"),
        (lambda: Dreams(truths=10**6), "truths is 1000000"),
        (lambda: Dreams(size=0), "size is 0"),
        (lambda: Dreams(size=10**6), "size is 1000000"),
        (lambda: Dreams(run_missing=True), "folder, where the dreams would go, is empty"),
        (lambda: Samples(per_view=-1), "per_view is -1"),
        (lambda: Samples(random=10**9), "random is 1000000000"),
        (lambda: Samples(steps=0), "steps is 0"),
        (lambda: Samples(guidance_scale=float("inf")), "guidance_scale is inf"),
        (lambda: Retrieval(size=-1), "size is -1"),
        (lambda: Evaluate(seed=-1), "seed is -1"),
        (lambda: Evaluate(retrieval=Retrieval(("clip",))), "name their folder, dreams.folder"),
    ],
)
def test_values_that_cannot_be_are_refused(build, says):
    with pytest.raises(UserError, match=says):
        build()


def test_the_configs():
    task = load_config("toybox_evaluate")
    assert task == Evaluate(dream=load_config("toybox")) and task.samples.any
    assert load_config("r_precision") == Evaluate(samples=NOTHING)
