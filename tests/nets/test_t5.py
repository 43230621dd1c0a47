"""T5's encoder against transformers': names, shapes, counts and outputs, random weights."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.errors import UserError
from dreamjax.nets.t5 import T5Config, T5Encoder, encode_by_blocks, position_buckets
from dreamjax.priors import published

TINY = {
    "model_type": "t5", "feed_forward_proj": "gated-gelu", "vocab_size": 40, "d_model": 24,
    "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_heads": 5, "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 32, "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1,
}  # fmt: skip
# The published config.json of T5 1.1 XXL, as IF's folders have it, but for who wrote it.
XXL = {
    "architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096,
    "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
    "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06,
    "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
    "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "use_cache": True,
    "vocab_size": 32128,
}  # fmt: skip


def wanted_shapes(config):
    ids = np.zeros((1, 2), np.int32)
    return jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, ids > 0)["params"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_output_agrees_with_transformers(tmp_path, quick_compilation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from ..parity.torch_random import agree, randomised

    module = randomised(transformers.T5EncoderModel(transformers.T5Config(**TINY)))
    module.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 40, (3, 50)).astype(np.int32)
    mask = np.arange(50) < np.array([[50], [7], [1]])
    ids[~mask] = 0
    with torch.no_grad():
        out = module.double()(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    config = T5Config.from_json(published.read_json(tmp_path / "config.json"))
    shapes = wanted_shapes(config)
    params = published.load(tmp_path, shapes)
    got = jax.jit(T5Encoder(config).apply)({"params": params}, ids, mask)
    assert agree(np.asarray(got), out.numpy(), "float32")
    read, asked = published.reader(tmp_path, shapes), []

    def recorded(name):
        asked.append(name)
        return read(name)

    by_blocks = encode_by_blocks(config, recorded, ids, mask)
    assert agree(by_blocks, out.numpy(), "float32")
    blocks = [f"encoder.block_{i}" for i in range(3)]
    assert asked == ["shared", *blocks, "encoder.final_layer_norm"]


@pytest.mark.slow
def test_the_published_encoder_has_the_published_parameters():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = flatten_dict(wanted_shapes(T5Config.from_json(XXL)), sep=".")
    assert sum(leaf.size for leaf in ours.values()) == 4_762_310_656
    with torch.device("meta"):
        theirs = transformers.T5EncoderModel(transformers.T5Config(**XXL)).state_dict()
    theirs.pop("encoder.embed_tokens.weight", None)
    assert {
        published.published_name(name): published.published_shape(name, leaf.shape)
        for name, leaf in ours.items()
    } == {name: tuple(value.shape) for name, value in theirs.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 32), (32, 100), (8, 20)])
def test_distances_fall_into_transformers_buckets(buckets, distance):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    place = torch.arange(300)
    theirs = t5.T5Attention._relative_position_bucket(
        place[None] - place[:, None], True, buckets, distance
    )
    config = T5Config(
        relative_attention_num_buckets=buckets, relative_attention_max_distance=distance
    )
    np.testing.assert_array_equal(position_buckets(config, 300), theirs.numpy())


def test_distances_fall_into_the_papers_buckets():
    """By hand, with 8 buckets up to 8: exact below 2, then one a factor of two, both ways."""
    config = T5Config(relative_attention_num_buckets=8, relative_attention_max_distance=8)
    row = position_buckets(config, 12)[5]
    assert row.tolist() == [3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "umt5"),
        ("feed_forward_proj", "relu"),
        ("feed_forward_proj", None),
        ("eos_token_id", 2),
        ("num_layers", 0),
        ("num_layers", 1000),
        ("d_model", "4096"),
        ("layer_norm_epsilon", -1.0),
        ("relative_attention_num_buckets", 30),
    ],
)
def test_another_network_is_refused_by_key_and_value(key, value):
    with pytest.raises(UserError, match=key) as error:
        T5Config.from_json({**XXL, key: value})
    assert str(value) in str(error.value)
    assert T5Config.from_json(XXL) == T5Config()


def test_a_file_without_the_activation_is_another_networks():
    with pytest.raises(UserError, match="feed_forward_proj 'relu'"):
        T5Config.from_json({"d_model": 64})
