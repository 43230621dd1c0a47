"""The judge of named things: what it counts, its file, its training, and scores of samples."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("numba")

from dreamjax.data.meshes import Drawing  # noqa: E402
from dreamjax.data.mixture import COLOR_NAMES, Mixing  # noqa: E402
from dreamjax.errors import UserError  # noqa: E402
from dreamjax.evaluate import judge as judges  # noqa: E402
from dreamjax.evaluate.judge import Judge, Trained  # noqa: E402
from dreamjax.evaluate.r_precision import retrieved  # noqa: E402
from dreamjax.nets.probe import Probe, ProbeConfig  # noqa: E402
from dreamjax.nets.text import TextConfig  # noqa: E402
from dreamjax.priors import objects  # noqa: E402
from dreamjax.priors.objects import Objects, ObjectsNet  # noqa: E402
from dreamjax.priors.sampling import Sampler  # noqa: E402
from dreamjax.tasks.evaluate_objects import EvaluateObjects  # noqa: E402
from dreamjax.tasks.train_judge import TrainJudge  # noqa: E402
from dreamjax.tasks.train_objects import NamedThings  # noqa: E402
from dreamjax.tasks.train_prior import UNetSize  # noqa: E402
from dreamjax.training.optimizer import Adam  # noqa: E402

from ..tiny import write_two_squares  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")
PHRASES = ("a brick", "a leaf", "a pond")


def write_judge(path) -> Trained:
    """A tiny judge with random parameters."""
    config = ProbeConfig(heads=(3,), channels=(8,), blocks=(0,), hidden=8)
    init = Probe(config).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), init)
    judge = Trained(config, PHRASES, params, {"lit": {"top-1": [3, 4], "top-5": [4, 4]}})
    judges.save(path, judge)
    return judge


def test_counts_by_hand():
    scores = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 9.0], [1.0, 0.0, 0.5]])
    truth = np.array([0, 1, 1])
    assert [judges.among(scores, truth, first).right for first in (1, 2, 3)] == [1, 2, 3]
    # What says the same of all phrases has told nothing of any.
    flat = {"top-1": [2, 2], "top-5": [2, 2]}
    assert judges.counts(np.zeros((2, 3)), truth[:2]) == flat


def test_a_judge_is_read_back_and_finds_what_its_logits_say(tmp_path):
    path = tmp_path / "judge.safetensors"
    written = write_judge(path)
    judge = Judge(str(path))
    found = judge.trained
    assert (found.config, found.phrases, found.report) == (
        written.config,
        written.phrases,
        written.report,
    )
    rgb = np.random.default_rng(0).uniform(size=(40, 64, 64, 3)).astype(np.float32)
    scores = judges.read(found, rgb)
    # By hand: the mean of each block of 2 x 2 pixels goes in, as one batch.
    small = rgb.reshape(40, 32, 2, 32, 2, 3).mean((2, 4))
    (wanted,) = Probe(found.config).apply({"params": written.params}, small)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    params = judge.load()
    order = ("A pond.", "a brick", "a leaf")
    nearest = retrieved(judge.image_features(params, rgb), judge.embed_texts(params, order))
    assert [(2, 0, 1)[i] for i in nearest] == scores.argmax(1).tolist()
    with pytest.raises(UserError, match="does not know the phrase 'a unicorn'"):
        judge.embed_texts(params, ["a unicorn"])


def test_other_files_are_no_judges(tmp_path):
    path = tmp_path / "prior.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=str(path)):
        Judge(str(path)).load()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"toybox_pictures": 9}, "toybox_pictures"),
        ({"mixing": Mixing(held_out_views=0)}, "held_out_views is 0"),
        ({"drawing": Drawing(size=48)}, "drawing.size is 48: expected a multiple of 32"),
    ],
)
def test_pictures_that_a_judge_cannot_learn_from(change, says):
    data = dataclasses.replace(TrainJudge().data, **change)
    with pytest.raises(UserError, match=says):
        TrainJudge(data=data)


@pytest.mark.slow
def test_it_learns_to_tell_two_things_apart(tmp_path):
    write_two_squares(tmp_path, thin=0.3)
    TrainJudge(
        steps=60,
        batch_size=32,
        checkpoint_every=60,
        fresh=256,
        data=NamedThings(
            meshes=str(tmp_path),
            dir=str(tmp_path / "cache"),
            drawing=Drawing(views=8, size=32),
            toybox_pictures=0,
        ),
        optimizer=Adam(3e-3, b2=0.99),
        ema_decay=0.9,
    ).run(tmp_path / "run")
    report = judges.load(tmp_path / "run" / "judge.safetensors").report
    for look in ("albedo", "lit"):  # colours tell them apart
        right, of = report[look]["top-1"]
        assert of > 30 and right > 0.9 * of
    right, of = report["textureless"]["top-1"]
    assert right > 0.6 * of


@pytest.mark.slow
def test_samples_are_scored_and_shown(tmp_path, capsys):
    write_judge(tmp_path / "judge.safetensors")
    vocabulary = ("", objects.PLURAL, "a", "brick", "leaf", "pond", *COLOR_NAMES)
    size = UNetSize(
        channels=16, channel_mults=(1,), down_blocks=(), middle_blocks=1, up_blocks=(),
        attention_levels=(0,), head_dim=8,
    )  # fmt: skip
    text = TextConfig(len(vocabulary), 8, 16, 0)
    net = ObjectsNet(size.make(16), text, vocabulary, image_size=8)
    objects.save(tmp_path / "prior.safetensors", net, net.init(jax.random.key(0)))
    task = EvaluateObjects(
        prior=Objects(str(tmp_path / "prior.safetensors"), image_size=8),
        judge=Judge(str(tmp_path / "judge.safetensors")),
        per_phrase=2,
        recolored=2,
        sampler=Sampler(steps=2),
    )
    task.run(tmp_path / "scores")
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    for look in ("lit", "textureless"):
        right, of = found["samples"][look]["top-1"]
        assert of == 6 and sum(found["right"][look].values()) == right
        assert found["samples"][look]["top-5"] == [6, 6]
        assert (tmp_path / "scores" / f"{look}.png").stat().st_size > 1000
    assert [of for _, of in found["colors"].values()] == [2, 2]  # two pictures of either pair
    assert (tmp_path / "scores" / "recolored.png").stat().st_size > 1000
    assert "| ground truth | lit | 75.0 % of 4 | 100.0 % of 4 |" in capsys.readouterr().out
