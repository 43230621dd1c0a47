"""Whole runs on tiny published models: text to 3D, Dream Fields, pictures, scores."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dreamjax.errors import UserError
from dreamjax.export.mesh import read_mesh
from dreamjax.main import load_config
from dreamjax.priors import stable_diffusion
from dreamjax.tasks import dream, evaluate, sample

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from . import tiny_sd  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# A run small enough for a test; everything else is as the config has it.
SMALL = dict(
    steps=20,
    steps_per_dispatch=5,
    albedo_steps=10,
    checkpoint_every=10,
    render_size=((0.0, 16),),
    field=dict(width=16, blocks=1, dtype="float32", blob_strength=6.0, density_bias=-2.0),
    render=dict(samples=8, normal_samples=2),
    export=dict(
        views_size=16,
        preview_size=16,
        video_frames=2,
        video_size=16,
        mesh=dict(resolution=24, max_faces=500),
    ),
)


def config_of(name, **changes):
    config = load_config(str(CONFIGS / name))
    with config.ignore_type():
        config.update(changes)
    return config


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
    settings = dict(weights=model, latent_share=0.25, perp_neg=1.0, clip_residual=50.0)
    config = config_of("sd15.py", prompt="a red ball", **settings, **SMALL)
    config.prior = dict(dtype="float32", remat=True, fused=False)
    dream.run(config, workdir)
    return workdir


def test_a_dream_with_its_mesh_and_report(dreamt):
    assert len(read_mesh(dreamt / "mesh.glb").faces) > 10
    assert "a red ball" in (dreamt / "report.html").read_text()
    rows = [json.loads(line) for line in (dreamt / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["skipped"] == 0
    scene = dream.load_scene(dreamt)[1]
    assert scene.mlp_background


def test_pictures(model, tmp_path):
    config = config_of("sd_sample.py", weights=model, prompts=("a red ball",), per_prompt=1)
    config.sampler.steps = "4"
    sample.run(config, tmp_path / "drawn")
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "images" / "a_red_ball-000.png"))
    assert drawn.shape == (64, 64, 3) and drawn.std() > 10
    # From that picture: near what the autoencoder makes of it where little noise is added, and far
    # from it where it is nearly all noise.
    Image.fromarray(drawn).resize((96, 96)).save(tmp_path / "given.png")
    rgb = np.asarray(Image.open(tmp_path / "given.png").resize((64, 64)), np.float32) / 255
    prior, params = stable_diffusion.load(model)
    # The encoder draws as the task's does: random weights give it a wide distribution.
    latent = prior.encode(params, rgb[None], jax.random.split(jax.random.key(1))[1])
    plain = prior.decode(params, latent)[0]
    far = []
    for start in (0.05, 1.0):
        config.image, config.start = str(tmp_path / "given.png"), start
        config.seed = 1
        config.sampler.steps = "20"
        sample.run(config, tmp_path / f"from_{start}")
        again = Image.open(tmp_path / f"from_{start}" / "images" / "a_red_ball-000.png")
        far.append(np.abs(np.asarray(again) / 255 - plain).mean())
    assert far[0] < 0.5 * far[1]


def test_dream_fields(clip, tmp_path):
    config = config_of("dream_fields.py", prompt="a red ball", weights=clip, **SMALL)
    config.render.chunk = 0
    dream.run(config, tmp_path / "run")
    assert len(read_mesh(tmp_path / "run" / "mesh.glb").faces) > 10
    config.weights = ""
    with pytest.raises(UserError, match="dream_fields needs CLIP"):
        dream.run(config, tmp_path / "other")


def test_r_precision(dreamt, clip, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("A red ball.\na blue cube\na green tree\n")
    config = config_of("r_precision.py")
    config.eval.update(dreams=str(dreamt.parent), prompts=str(captions), clip_size=16)
    config.eval.clips = (clip,)
    evaluate.run(config, tmp_path / "scores")
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())["r_precision"]
    assert [row["clip"] for row in found] == [clip]
    text = (tmp_path / "scores" / "scores.md").read_text()
    assert "1 prompts among 3 captions, 1 runs (seeds a prompt: 1) of 8 azimuths" in text
    captions.write_text("a blue cube\na green tree\n")
    with pytest.raises(UserError, match="'a red ball' is not in the list"):
        evaluate.run(config, tmp_path / "none")
