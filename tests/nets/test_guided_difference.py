"""What 16-bit activations leave of eps_cond - eps_uncond, which guidance multiplies by 100.

The cosine of the difference to float32's, of Stable Diffusion's UNet with random weights, tiny and
at full size: `pytest -m slow -s tests/nets/test_guided_difference.py` prints the table of
docs/stable_diffusion.md.
"""

import dataclasses
import math
import os

import jax
import numpy as np
import pytest

from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
TINY = SDUNetConfig(
    sample_size=16, block_out_channels=(32, 64, 64, 64), layers_per_block=1, cross_attention_dim=64
)
FULL = SDUNetConfig(cross_attention_dim=768)
# How far the text is from the null text, in standard deviations of either.
APART = {"tiny": (1.0, 0.3, 0.1, 0.03), "full": (1.0, 0.1)}


def random_params(net: SDUNet, *inputs):
    """Weights that keep their inputs' size, norms near the identity, biases near 0."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        fan_in = math.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100.0
        values = rng.standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(fan_in))
        return values + np.float32(path[-1].key == "scale")

    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def differences(config: SDUNetConfig, apart: tuple[float, ...], dtypes: tuple[str, ...]):
    """(eps_uncond in float32, differences of each text by dtype), float64."""
    rng = np.random.default_rng(1)
    side, dim = config.sample_size, config.cross_attention_dim
    z = rng.standard_normal((1, side, side, config.in_channels)).astype(np.float32)
    null, word = rng.standard_normal((2, 1, 77, dim)).astype(np.float32)
    tokens = np.concatenate([null, *(null + np.float32(s) * word for s in apart)])
    z, t = np.repeat(z, len(tokens), axis=0), np.full(len(tokens), 500)
    params = random_params(SDUNet(config), z, t, tokens)
    found = {}
    for dtype in dtypes:
        net = SDUNet(dataclasses.replace(config, dtype=dtype))
        eps = np.asarray(jax.jit(net.apply)(params, z, t, tokens), np.float64)
        found[dtype] = eps[1:] - eps[:1]
        uncond = found.setdefault("uncond", eps[0])
    return uncond, found


def cosine(a, b) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.large)])
def test_float16_keeps_more_of_it_than_bfloat16(size):
    if size == "full" and MEMORY < 20:
        pytest.skip(f"needs 20 GiB of memory; this machine has {MEMORY:.0f}")
    config = {"tiny": TINY, "full": FULL}[size]
    uncond, found = differences(config, APART[size], ("float32", "bfloat16", "float16"))
    print("\n| UNet | of eps | bfloat16 | float16 |\n|---|---|---|---|")
    for i, true in enumerate(found["float32"]):
        share = np.linalg.norm(true) / np.linalg.norm(uncond)
        low, half = (cosine(true, found[dtype][i]) for dtype in ("bfloat16", "float16"))
        print(f"| {size} | {100 * share:.2g} % | {low:.4f} | {half:.5f} |", flush=True)
        assert 1.0 - half < 0.2 * (1.0 - low)
        assert half > 0.99 or share < 0.02
