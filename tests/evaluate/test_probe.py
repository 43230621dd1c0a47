import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import truth
from dreamjax.evaluate.scores import Count, accuracy, confusion, total
from dreamjax.nets.probe import Probe
from dreamjax.tasks import train_probe
from dreamjax.toybox.draw import AS_USUAL
from dreamjax.toybox.kinds import KINDS
from dreamjax.toybox.pictures import Labelled
from dreamjax.training.optimizer import Adam

NAMES = [kind.name for kind in KINDS]
BALL, CAR = NAMES.index("ball"), NAMES.index("car")


@pytest.fixture(scope="module")
def small():
    config = probes.make_config(channels=(8, 16), blocks=(1, 0), hidden=8)
    blank = jnp.zeros((1, probes.SIZE, probes.SIZE, 3))
    params = jax.jit(Probe(config).init)(jax.random.key(0), blank)["params"]
    return probes.Shipped(config, params, {"looks": {}})


def rewrite(source, target, **changes):
    with safe_open(str(source), framework="numpy") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    save_file(tensors, str(target), {**metadata, **changes})
    return target


def test_counts_by_hand():
    predicted, right = np.array([0, 1, 2, 2, 1]), np.array([0, 1, 1, 2, 0])
    assert accuracy(predicted, right) == Count(3, 5)
    assert accuracy(predicted, right, np.array([True, False, True, True, True])) == Count(2, 4)
    assert total([Count(3, 5), Count(2, 4)]) == Count(5, 9)
    assert Count(2, 4).share == 0.5 and np.isnan(Count(0, 0).share)
    expected = [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    np.testing.assert_array_equal(confusion(predicted, right, 3), expected)


def test_score_by_hand():
    # A ball (no second part), a car read right, a car with a wrong top, a car textureless.
    truth = probes.Labels(*np.array([[BALL, CAR, CAR, CAR], [1, 2, 2, 3], [1, 4, 4, 3], [0] * 4]))
    said = probes.Labels(
        *np.array([[BALL, CAR, CAR, CAR], [1, 2, 2, 9], [7, 4, 5, 9], [0, 1, 0, 2]])
    )
    colored = np.array([True, True, True, False])
    assert probes.score(said, truth, colored, tells=np.array([False, True, True, True])) == {
        "kind": Count(4, 4),
        "first": Count(3, 3),
        "second": Count(1, 2),
        "object": Count(2, 3),
        "view": Count(1, 3),
    }


def test_a_probe_is_read_back_as_float16(small, tmp_path):
    probes.save(tmp_path / "probe.safetensors", small)
    back = probes.load(tmp_path / "probe.safetensors")
    assert back.config == small.config and back.report == small.report
    expected = jax.tree.map(lambda x: np.asarray(x, np.float16), small.params)
    jax.tree.map(np.testing.assert_array_equal, back.params, expected)


def test_foreign_weights_are_refused(small, tmp_path):
    path = tmp_path / "probe.safetensors"
    probes.save(path, small)
    with pytest.raises(UserError, match="cannot read weights .*missing"):
        probes.load(tmp_path / "missing.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot read weights .*damaged"):
        probes.load(tmp_path / "damaged.safetensors")
    with pytest.raises(UserError, match="of format 'dreamjax-toybox-1', not 'dreamjax-probe-1'"):
        probes.load(rewrite(path, tmp_path / "prior.safetensors", format="dreamjax-toybox-1"))
    layout = json.dumps({"channels": [8, 24], "blocks": [1, 0], "hidden": 8})
    with pytest.raises(UserError, match="does not fit"):
        probes.load(rewrite(path, tmp_path / "wide.safetensors", layout=layout))


@pytest.mark.parametrize(
    "head, names, says",
    [
        ("kind", [*NAMES, "boat"], "boat"),
        ("first", ["red"], "blue"),
        ("kind", NAMES[::-1], "order"),
    ],
)
def test_a_probe_of_another_toybox_is_refused(small, tmp_path, head, names, says):
    probes.save(tmp_path / "probe.safetensors", small)
    classes = json.dumps({**probes.CLASSES, head: names})
    path = rewrite(tmp_path / "probe.safetensors", tmp_path / "old.safetensors", classes=classes)
    with pytest.raises(UserError, match=f"another toybox .*classes of {head} differ: .*{says}"):
        probes.load(path)


def test_pictures_of_any_size_are_brought_to_the_probes(small):
    rng = np.random.default_rng(0)
    images = rng.random((2, 64, 64, 3), np.float32)
    blocks = images.reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
    np.testing.assert_allclose(probes.shrink(images), blocks, atol=1e-6)
    for size in (20, 50, 64):
        even = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (3, size, size, 3))
        np.testing.assert_allclose(
            probes.shrink(even), even[:, :1, :1].repeat(32, 1).repeat(32, 2), atol=1e-5
        )
    reading = probes.read(images, small)
    assert [p.shape for p in reading] == [(2, len(names)) for names in probes.CLASSES.values()]
    for probabilities in reading:
        np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    many = probes.read(np.concatenate([images] * 150), small)  # more than one chunk
    np.testing.assert_allclose(many.kind, np.tile(reading.kind, (150, 1)), rtol=1e-4)


def test_softening_can_be_turned_off_but_for_the_mirror():
    off = train_probe.Soften((0.05, 0.05), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0)
    picture = np.random.default_rng(0).random((32, 32, 3), np.float32)
    soften = jax.jit(lambda key: train_probe.soften(key, picture, off))
    seen = [np.asarray(soften(jax.random.key(i))) for i in range(12)]
    same = [np.allclose(rgb, picture, atol=1e-5) for rgb in seen]
    mirrored = [np.allclose(rgb, picture[:, ::-1], atol=1e-5) for rgb in seen]
    assert any(same) and any(mirrored)
    assert all(a != b for a, b in zip(same, mirrored, strict=True))


def test_softening_keeps_flat_pictures_flat_and_in_range():
    config = train_probe.Soften(gain=0.0, tint=0.0, noise=0.0)
    flat = jnp.full((32, 32, 3), 0.3)
    soften = jax.jit(lambda key: train_probe.soften(key, flat, config))
    for i in range(4):
        np.testing.assert_allclose(soften(jax.random.key(i)), 0.3, atol=1e-5)
    noisy = train_probe.Soften(noise=1.0)
    rgb = train_probe.soften(jax.random.key(0), flat, noisy)
    assert float(rgb.min()) >= 0.0 and float(rgb.max()) <= 1.0


@pytest.mark.slow
def test_training_learns_and_resumes(monkeypatch, small, tmp_path, capsys):
    # Instead of toybox pictures, flat ones whose colour tells everything.
    def drawn(split, count):
        kind = np.arange(count) % 2 + CAR
        rgb = np.broadcast_to((kind == CAR)[:, None, None, None] * 200, (count, 32, 32, 3))
        colors, zeros = np.stack([kind - CAR] * 2, -1), np.zeros(count, np.int32)
        return Labelled(rgb.astype(np.uint8), np.zeros((count, 24)), kind, colors, zeros, zeros)

    monkeypatch.setattr(train_probe, "_drawn", drawn)
    monkeypatch.setattr(probes, "make_config", lambda **layout: small.config)
    task = train_probe.TrainProbe(
        pictures=64,
        fresh=16,
        steps=60,
        batch_size=8,
        steps_per_dispatch=10,
        ema_decay=0.5,
        checkpoint_every=30,
        optimizer=Adam(learning_rate=1e-2),
    )
    task.run(tmp_path)
    assert "| albedo | 100.0 % of 16 | 100.0 % of 16 |" in capsys.readouterr().out
    written = load_file(tmp_path / "probe.safetensors")
    report = probes.load(tmp_path / "probe.safetensors").report
    assert report["view_by_kind"]["car"] == [8, 8] and report["view_by_kind"]["mug"] == [0, 0]
    task.run(tmp_path)  # finished: measures again, trains no more
    again = load_file(tmp_path / "probe.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again, written)


@pytest.fixture(scope="module")
def fresh_counts():
    """The shipped probe's counts on coloured ground-truth renders that it was never shown."""
    count = 320
    rng = np.random.default_rng(7)
    kind, views = np.arange(count) % len(KINDS), rng.integers(0, 4, count)
    colors = rng.integers(0, len(probes.COLOR_NAMES), (count, 2))
    lone = [k for k, entry in enumerate(KINDS) if entry.usual is None]
    colors[np.isin(kind, lone), 1] = colors[np.isin(kind, lone), 0]
    taking = truth.takings_of_views(jax.random.key(8), views, AS_USUAL)
    keys = jax.random.split(jax.random.key(9), count)
    rgb = truth.pictures(keys, truth.Subject(kind, colors), taking).rgb
    labels = probes.Labels(kind, *colors.T, views)
    return probes.score(probes.read(rgb).labels, labels)


def test_the_shipped_probe_is_small():
    size = sum(x.size for x in jax.tree.leaves(probes.load().params))
    assert size < 1.5e6 and 2 * size < 3e6


@pytest.mark.slow
def test_the_shipped_probe_scores_what_its_file_states(fresh_counts):
    looks = probes.load().report["looks"]
    for head in ("kind", "first", "second"):
        counts = fresh_counts[head]
        stated = total(Count(*looks[look][head]) for look in ("albedo", "shaded"))
        spread = (stated.share * (1 - stated.share) / counts.of) ** 0.5
        # Kinds, colours and views are drawn evenly here, which is a little harder.
        assert counts.share > stated.share - 0.05 - 3 * spread, (head, counts, stated)


@pytest.mark.xfail(strict=True, reason="undertrained: kind .92, colours .85 and .74")
@pytest.mark.slow
@pytest.mark.parametrize(
    "head, least", [("kind", 0.93), ("first", 0.90), ("second", 0.80), ("view", 0.60)]
)
def test_the_shipped_probe_is_good_enough_to_judge_by(fresh_counts, head, least):
    assert fresh_counts[head].share > least, fresh_counts[head]
