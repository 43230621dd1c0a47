"""The text-to-3D task from config to files, with a network that nobody trained."""

import json
import os
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image

from dreamjax.errors import UserError
from dreamjax.export.mesh import read_mesh
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox as toybox_prior
from dreamjax.tasks import dream
from dreamjax.toybox.captions import VOCABULARY
from dreamjax.training.metrics import Progress

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROMPT = "a red mushroom with a white stem"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    prior = toybox_prior.ToyboxPrior(
        UNetConfig(
            channels=8,
            channel_mults=(1, 2),
            down_blocks=(1,),
            up_blocks=(1,),
            middle_blocks=1,
            attention_levels=(1,),
            head_dim=8,
            text_dim=16,
        ),
        TextConfig(len(VOCABULARY), dim=16, layers=1, heads=2),
        VOCABULARY,
        image_size=16,
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    toybox_prior.save(path, prior, prior.init(jax.random.key(3)))
    return str(path)


def make_config(weights, **changes):
    config = config_dict.ConfigDict(
        dict(
            task="dream",
            prompt=PROMPT,
            seed=1,
            steps=4,
            albedo_steps=2,
            front_after=0.5,
            batch_views=2,
            weights=weights,
            render_size=((0.0, 16),),
            field=dict(width=16, blocks=1),
            render=dict(samples=8, normal_samples=2),
            export=dict(
                views_size=16,
                preview_size=16,
                views_every=2,
                video_frames=3,
                video_size=16,
                mesh=dict(resolution=24),
            ),
            checkpoint_every=100,
            log_every=1,
        )
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def straight(weights, tmp_path_factory):
    """The workdir of a run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    dream.run(make_config(weights), workdir)
    return workdir


def parameters(workdir):
    return jax.tree.leaves(dream.load_scene(workdir)[2])


def test_a_run_leaves_what_it_promises(straight):
    names = {path.name for path in straight.iterdir()}
    assert {
        "config.json",
        "checkpoints",
        "events",
        "views.png",
        "turntable.mp4",
        "mesh.glb",
        "mesh.png",
        "report.html",
    } <= names
    assert json.loads((straight / "config.json").read_text())["prompt"] == PROMPT
    mesh = read_mesh(straight / "mesh.glb")
    assert len(mesh.faces) > 100 and np.abs(mesh.vertices).max() <= 1.1
    report = (straight / "report.html").read_text()
    front = int(dream.load_scene(straight)[2].front)
    assert PROMPT in report and f"front found at: {90 * front} degrees" in report
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["grad_norm"] > 0 and 0 < row["opacity"] < 1 for row in rows)
    assert rows[0]["orientation"] == 0.0 < rows[-1]["orientation"]


@pytest.mark.slow
@pytest.mark.parametrize("last", [2, 3], ids=["before the front is looked for", "after"])
def test_a_stopped_run_goes_on_bit_for_bit(weights, straight, last, tmp_path, monkeypatch, capsys):
    update = Progress.update

    def stop(self, step, metrics=None):
        update(self, step, metrics)
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop)
    workdir = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        dream.run(make_config(weights), workdir)
    assert f"saved step {last}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"not finished: step {last} of 4"):
        dream.load_scene(workdir)
    monkeypatch.setattr(Progress, "update", update)
    dream.run(make_config(weights), workdir)
    for ours, theirs in zip(parameters(workdir), parameters(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # The time before the stop counts too.
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] and seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(prompt=""), "prompt is empty"),
        (dict(prompt="a red dragon"), "'dragon'"),
        (dict(weights="/nowhere.safetensors"), "nowhere"),
        (dict(render_size=((0.5, 16),)), "render_size"),
        (dict(front_after=1.0), "front_after is 1.0: expected 0 or more and below 1"),
        (dict(front_after=0.25, steps_per_dispatch=2), "front_after at 1: expected multiples"),
        (dict(front_after=0.5, dream_fields={}), "dream_fields cannot find a front"),
        (dict(t_range=(0.9, 0.1)), "t_range"),
        (dict(batch_views=0), "at least one"),
    ],
)
def test_bad_input_touches_nothing(weights, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        dream.run(make_config(**{"weights": weights, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_prompt_is_left_alone(weights, straight):
    before = {path: path.stat().st_mtime_ns for path in straight.iterdir()}
    with pytest.raises(UserError, match="prompt"):
        dream.run(make_config(weights, prompt="a blue ball"), straight)
    assert {path: path.stat().st_mtime_ns for path in straight.iterdir()} == before


def test_phases_follow_size_and_shading():
    config = dream.DreamConfig("x", steps=10, albedo_steps=3, render_size=((0.0, 8), (0.5, 16)))
    assert dream.phases(config) == [
        dream.Phase(0, 3, 8, False, False),
        dream.Phase(3, 5, 8, True, False),
        dream.Phase(5, 10, 16, True, False),
    ]
    latent = [phase.latent for phase in dream.phases(replace(config, latent_share=0.4))]
    assert latent == [True, True, False, False]


@pytest.mark.slow
def test_show_guidance_draws_what_the_prior_wants(straight, tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "scripts" / "show_guidance.py"
    shown = runpy.run_path(str(script))
    out = tmp_path / "guidance.png"
    argv = [str(script), str(straight), "--t", "0.5", "--guidance", "1", "4", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    shown["main"]()
    assert np.asarray(Image.open(out)).shape[1] > 2 * 96
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="cannot read"):
        shown["main"]()


def test_what_the_prior_wants_is_linear_in_guidance(weights):
    script = Path(__file__).parents[2] / "scripts" / "show_guidance.py"
    wanted = runpy.run_path(str(script))["x_0_hats"]
    prior, params = toybox_prior.load(weights)
    rgb = jax.random.uniform(jax.random.key(0), (16, 16, 3), minval=0.4, maxval=0.6)
    zero, one, four = wanted(prior, params, PROMPT, 1, rgb, 200, (0.0, 1.0, 4.0))
    inside = (np.minimum(zero, four) > 0) & (np.maximum(zero, four) < 1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(four[inside], (zero + 4 * (one - zero))[inside], atol=1e-5)
    # At the least noise the prior can only want what it sees.
    (same,) = wanted(prior, params, PROMPT, 1, rgb, 0, (1.0,))
    np.testing.assert_allclose(same, rgb, atol=0.1)
