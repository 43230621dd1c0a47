"""What the files of a DeepFloyd IF-I say, its tokens, and folders of other models."""

import json

import jax
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.nets.t5 import T5Config
from dreamjax.priors.base import Prompt
from dreamjax.priors.deepfloyd import Deepfloyd, token_ids

from ..nets.test_deepfloyd import TINY, XL
from ..nets.test_t5 import XXL

SCHEDULER = {
    "_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001, "clip_sample": True, "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.95, "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.5, "thresholding": True,
    "trained_betas": None, "variance_type": "learned_range",
}  # fmt: skip
NOISE = "scheduler/scheduler_config.json"
FILES = {
    "model_index.json": {"_class_name": "IFPipeline"},
    "unet/config.json": XL,
    "text_encoder/config.json": XXL,
    NOISE: SCHEDULER,
}
# A SentencePiece's of T5: padding, the end, unknown, the space, letters, two words.
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
PIECES += [(chr(n), -3.0) for n in range(97, 123)]
PIECES += [("▁a", -2.5), ("▁red", -4.0), ("▁ball", -4.0), (",", -3.0)]
TEXTS = ["a red ball", "", "  A  RED\tBall! ", "élan ✓ 雪だるま", "red " * 100]


def write(folder, **changes):
    for name, content in (FILES | changes).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def write_pieces(folder):
    """A SentencePiece file as its own library writes one."""
    protobuf = pytest.importorskip("transformers.convert_slow_tokenizer").import_protobuf()
    model = protobuf.ModelProto()
    for piece, score in PIECES:
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.unk_id = 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.SerializeToString())


def test_everything_is_read_from_the_folder(tmp_path):
    prior = Deepfloyd(weights=write(tmp_path), dtype="float16")
    assert (prior.image_size, prior.shape, prior.levels) == (64, (64, 64, 3), 256)
    assert prior.net.unet.dtype == "float16" and prior.net.text == T5Config()
    # A squared cosine, by hand (arXiv 2102.09672 eq. 17).
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    np.testing.assert_allclose(prior.schedule.alpha_bar, alpha_bar, rtol=1e-6)
    p = prior.parameterisation
    assert (p.prediction, p.variance) == ("eps", "learned_range")
    # Nineteen of twenty values are at most 1.2, one in a hundred is 9: cut at 1.5.
    x_0 = np.concatenate([np.full(90, 0.6), np.full(8, 3.0), np.full(2, -9.0)])[None]
    np.testing.assert_allclose(p.threshold(x_0)[0, [0, 90, 99]], [0.4, 1.0, -1.0], rtol=1e-6)
    x_0 = np.concatenate([np.full(96, 0.6), np.full(4, 3.0)])[None]
    np.testing.assert_allclose(p.threshold(x_0)[0, [0, 99]], [0.6, 1.0], rtol=1e-6)


def test_pixels_are_the_priors_space(tmp_path):
    prior = Deepfloyd(weights=write(tmp_path))
    rgb = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3))
    keys = jax.random.split(jax.random.key(1), 2)
    z_0 = prior.encode({}, rgb, keys)
    np.testing.assert_allclose(z_0, 2 * rgb - 1, rtol=1e-6)
    np.testing.assert_allclose(prior.decode({}, z_0), rgb, atol=1e-6)
    assert prior.encode({}, rgb[:, :32, :32], keys, cheap=True).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model_index.json", {"_class_name": "IFSuperResolutionPipeline"}, "not an IFPipeline"),
        ("model_index.json", {}, "is a model of no kind, not an IFPipeline"),
        ("unet/config.json", {**XL, "act_fn": "silu"}, "unet: .*act_fn 'silu'"),
        ("unet/config.json", {**XL, "in_channels": 6}, "maps 6 channels to 6; expected 3 to 6"),
        ("unet/config.json", {**XL, "encoder_hid_dim": 1024}, "encoder_hid_dim 1024; .* is 4096"),
        ("text_encoder/config.json", {"model_type": "clip"}, "text_encoder: .*model_type 'clip'"),
        (NOISE, {**SCHEDULER, "beta_schedule": "linear"}, "scheduler.*beta_schedule is 'linear'"),
        (NOISE, {**SCHEDULER, "variance_type": "fixed_small"}, "variance_type is 'fixed_small'"),
        (NOISE, {**SCHEDULER, "dynamic_thresholding_ratio": 0.0}, "thresholding_ratio is 0.0"),
        (NOISE, {"beta_schedule": "squaredcos_cap_v2"}, "num_train_timesteps is missing"),
    ],
)
def test_another_models_folder(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says) as error:
        Deepfloyd(weights=write(tmp_path, **{name: content})).load()
    assert "\n" not in str(error.value)


def test_missing_weights_are_told_as_that(tmp_path):
    says = (
        "Deepfloyd needs weights: name a folder or a repository id, as "
        "--config.prior.weights=DeepFloyd/IF-I-M-v1.0"
    )
    for ask in (Deepfloyd().load, lambda: Deepfloyd().schedule):
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value) == says
    small = {"unet/config.json": {**TINY, "encoder_hid_dim": 4096}}
    prior = Deepfloyd(weights=write(tmp_path, **small))
    with pytest.raises(UserError, match="unet holds no .safetensors file"):
        prior.load()
    with pytest.raises(UserError, match="holds no spiece.model, nor tokenizer.json"):
        prior.embed({}, Prompt("a red ball"))
    with pytest.raises(UserError, match="has no word in it"):
        Deepfloyd().embed({}, Prompt("!!!"))


def test_texts_are_cut_ended_and_padded(tmp_path):
    write_pieces(tmp_path)
    names = [piece for piece, _ in PIECES]
    ids = token_ids(tmp_path, TEXTS, 40)
    assert ids.shape == (5, 77)
    words = [names.index(word) for word in ("▁a", "▁red", "▁ball")]
    assert ids[0].tolist() == [*words, 1, *[0] * 73]
    assert ids[1].tolist() == [1, *[0] * 76]
    assert ids[2].tolist() == [*words, 2, 1, *[0] * 72]
    assert ids[4].tolist() == [words[1]] * 76 + [1]
    with pytest.raises(UserError, match="more than vocab_size tokens: 32 is one, vocab_size 30"):
        token_ids(tmp_path, TEXTS[:1], 30)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "spiece.model").write_bytes(b"no tokenizer")
    with pytest.raises(UserError, match="cannot read the tokenizer .*other/spiece.model"):
        token_ids(tmp_path / "other", TEXTS, 40)
