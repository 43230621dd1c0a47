"""Whole runs on tiny published models: text to 3D, Dream Fields, pictures, scores."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dreamjax.config import replaced
from dreamjax.errors import UserError
from dreamjax.export.glb import Glb
from dreamjax.export.mesh import read_mesh
from dreamjax.export.report import Report
from dreamjax.export.surface import Surface
from dreamjax.export.turntable import Turntable
from dreamjax.export.views import Views
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from . import tiny_sd  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
ROOT = Path(__file__).resolve().parents[2]


def task_of(name, **changes):
    """A config's task with values changed by their path, `__` for the dot."""
    sys.path.insert(0, str(ROOT))
    try:
        task = importlib.import_module(f"configs.{name}").get_config()
    finally:
        sys.path.remove(str(ROOT))
    return replaced(task, {path.replace("__", "."): value for path, value in changes.items()})


def small(name, **changes):
    """A dream small enough for a test; everything else is as the config has it."""
    task = task_of(
        name,
        steps=20,
        steps_per_dispatch=5,
        checkpoint_every=10,
        field=Mlp(width=16, blocks=1),
        density=Density(bias=-2.0, blob=Blob(strength=6.0)),
        renderer__samples=8,
        renderer__normal_samples=2,
        preview_size=16,
        surface=Surface(resolution=24, max_faces=500),
        exports=(Views(16), Glb(), Turntable(2, 16), Report()),
        **changes,
    )
    phases = tuple(dataclasses.replace(phase, size=16) for phase in task.phases)
    return dataclasses.replace(task, phases=phases)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    tiny_sd.make(folder, "2.x")
    return str(folder / "model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    tiny_sd.save_tokenizer(folder, "<|endoftext|>")
    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=3)
    start, end = tiny_sd.START, tiny_sd.END
    text = dict(vocab_size=end + 1, bos_token_id=start, eos_token_id=end, **sizes)
    vision = dict(image_size=16, patch_size=8, **sizes)
    torch.manual_seed(1)
    module = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    tiny_sd.randomise(module.eval(), 0.2)
    module.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dreamt(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dreams") / "a-red-ball"
    prior = StableDiffusion(weights=model, dtype="float32", remat=True, interpolate_views=True)
    task = small("sd15", prompt="a red ball", prior=prior, objective__perp_neg=1.0)
    assert task.phases[0].cheap and not task.phases[-1].cheap
    task.run(workdir)
    return workdir


def test_a_dream_with_its_mesh_and_report(dreamt):
    assert len(read_mesh(dreamt / "mesh.glb").faces) > 10
    assert "a red ball" in (dreamt / "report.html").read_text()
    rows = [json.loads(line) for line in (dreamt / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["skipped"] == 0


def test_pictures(model, tmp_path):
    task = task_of(
        "sd_sample",
        prior__weights=model,
        prompts=("a red ball",),
        per_prompt=1,
        sampler__steps=4,
    )
    task.run(tmp_path / "drawn")
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "images" / "a_red_ball-000.png"))
    assert drawn.shape == (64, 64, 3) and drawn.std() > 10
    # From that picture: near what the autoencoder makes of it where little noise is added, and far
    # from it where it is nearly all noise.
    Image.fromarray(drawn).resize((96, 96)).save(tmp_path / "given.png")
    rgb = np.asarray(Image.open(tmp_path / "given.png").resize((64, 64)), np.float32) / 255
    params = task.prior.load()
    # The encoder draws as the task's does: random weights give it a wide distribution.
    latent = task.prior.encode(params, rgb[None], jax.random.split(jax.random.key(1))[1:])
    plain = task.prior.decode(params, latent)[0]
    far = []
    for start in (0.05, 1.0):
        again = replaced(
            task,
            {
                "image": str(tmp_path / "given.png"),
                "start": start,
                "seed": 1,
                "sampler.steps": "20",
            },
        )
        again.run(tmp_path / f"from_{start}")
        found = Image.open(tmp_path / f"from_{start}" / "images" / "a_red_ball-000.png")
        far.append(np.abs(np.asarray(found) / 255 - plain).mean())
    assert far[0] < 0.5 * far[1]


def test_dream_fields(clip, tmp_path):
    task = small("dream_fields", prompt="a red ball", prior__weights=clip)
    task.run(tmp_path / "run")
    assert len(read_mesh(tmp_path / "run" / "mesh.glb").faces) > 10
    with pytest.raises(UserError, match="Clip needs weights"):
        replaced(task, {"prior.weights": ""}).run(tmp_path / "other")
    with pytest.raises(UserError):  # no features of images
        dataclasses.replace(task, prior=Toybox()).run(tmp_path / "other")


def test_r_precision(dreamt, clip, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("A red ball.\na blue cube\na green tree\n")
    task = task_of(
        "r_precision",
        dreams__folder=str(dreamt.parent),
        retrieval__captions=str(captions),
        retrieval__clips=(clip,),
        retrieval__size=16,
    )
    task.run(tmp_path / "scores")
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())["r_precision"]
    assert [row["clip"] for row in found] == [clip]
    text = (tmp_path / "scores" / "scores.md").read_text()
    assert "1 prompts among 3 captions, 1 runs (seeds a prompt: 1) of 8 azimuths" in text
    captions.write_text("a blue cube\na green tree\n")
    with pytest.raises(UserError, match="'a red ball' is not in the list"):
        task.run(tmp_path / "none")
