"""Times Stable Diffusion 1.5 at full size with random weights: UNet, VAE, one distillation step.

    scripts/benchmark_stable_diffusion [float32|bfloat16]

Operations are XLA's own count of the compiled program, memory its plan for temporary buffers beside
the arguments. Where PyTorch and diffusers are installed, their networks are timed in the same run,
on the CPU, with the same operations.
"""

import gc
import sys
from functools import partial

import jax
import jax.numpy as jnp

from dreamjax.diffusion.schedule import scaled_linear
from dreamjax.distill.sds import SdsConfig, SdsParams, make_sds
from dreamjax.distill.step import StepConfig, init_scene, make_sds_step
from dreamjax.nets.stable_diffusion.clip import CLIPTextConfig
from dreamjax.nets.stable_diffusion.unet import SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import VAEConfig
from dreamjax.nets.text import Text
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.scene.field import FieldConfig
from dreamjax.scene.render import RenderConfig
from dreamjax.tasks.benchmark import Row, table, timed
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer

UNET = dict(
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    sample_size=64,
    cross_attention_dim=768,
    attention_head_dim=8,
)


def random_params(prior: StableDiffusion):
    """Parameters of the right shapes, small and not zero, without the time that `init` takes."""
    shapes = jax.eval_shape(prior.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)


def compiled(name: str, function, *args):
    """The compiled function, its operations and its temporary memory, which is told."""
    program = jax.jit(function).lower(*args).compile()
    cost = program.cost_analysis()
    flops = float((cost[0] if isinstance(cost, list) else cost)["flops"])
    memory = program.memory_analysis()
    print(
        f"{name}: {flops / 1e12:.3f} TFLOP, {memory.temp_size_in_bytes / 2**30:.2f} GiB temporary, "
        f"{memory.argument_size_in_bytes / 2**30:.2f} GiB of arguments",
        flush=True,
    )
    return program, flops


def ours(dtype: str, repeats: int) -> list[Row]:
    """Rows for UNet, encoder, decoder and one step of `configs/sd15.py`'s kind."""
    prior = StableDiffusion(
        SDUNetConfig(cross_attention_dim=768, dtype=dtype),
        VAEConfig(dtype=dtype, remat=True),
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
        scaled_linear(1000),
        "eps",
        "",
    )
    params = random_params(prior)
    text = Text(jnp.zeros((2, 77, 768)), jnp.ones((2, 77), bool))
    z, t = jnp.zeros((2, 64, 64, 4)), jnp.zeros(2, jnp.int32)
    rgb, key = jnp.zeros((1, 512, 512, 3)), jax.random.key(0)
    pull = lambda params, rgb: jax.grad(lambda x: jnp.sum(prior.encode(params, x, key)))(rgb)  # noqa: E731
    calls = [
        ("UNet, 2 latents of 64 x 64", "latents", 2, prior.predict_eps, (params, z, t, text)),
        ("VAE encoder with its gradient, 512 x 512", "images", 1, pull, (params, rgb)),
        ("VAE decoder, 512 x 512", "images", 1, prior.decode, (params, z[:1])),
    ]
    rows = []
    for name, unit, count, function, args in calls:
        program, flops = compiled(name, function, *args)
        rows.append(Row(name, unit, count, timed(partial(program, *args), repeats), flops))
    scene = StepConfig(
        field=FieldConfig(width=128, blocks=4, max_deg=8, dtype=dtype),
        render=RenderConfig(samples=64, normal_samples=16, radius=1.0),
        mlp_background=True,
    )
    objective = make_sds(prior, SdsConfig(guidance_scale=100.0, interpolate_views=True), 10_000)
    tx = make_optimizer(OptimizerConfig(), 10_000)
    update = lambda *args: apply_gradients(tx, *args)  # noqa: E731
    step = make_sds_step(objective, scene, update, lambda tree: tree, 64, True)
    views = Text(jnp.zeros((4, 77, 768)), jnp.ones((4, 77), bool))
    told = SdsParams(params, views, jax.tree.map(lambda x: x[:1], views))
    args = (init_scene(key, scene, tx), jnp.zeros(1, jnp.int32), told, key)
    name = "distillation step, one view of 64 x 64"
    program, flops = compiled(name, step, *args)
    rows.append(Row(name, "steps", 1, timed(partial(program, *args), repeats), flops))
    return rows


def theirs(rows: list[Row], repeats: int) -> list[Row]:
    """The same of diffusers' networks, where they are installed; PyTorch uses all cores too."""
    try:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
    except ImportError:
        print("PyTorch and diffusers are not installed: nothing to compare with")
        return []
    blocks = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
    unet = UNet2DConditionModel(
        **UNET,
        down_block_types=[*blocks[0], "DownBlock2D"],
        up_block_types=["UpBlock2D", *blocks[1]],
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ).eval()
    z, t, tokens = torch.zeros(2, 4, 64, 64), torch.zeros(2), torch.zeros(2, 77, 768)

    def network():
        with torch.no_grad():
            return unet(z, t, tokens).sample.numpy()

    def encoder():
        x = torch.zeros(1, 3, 512, 512, requires_grad=True)
        vae.encode(x).latent_dist.mean.sum().backward()
        return x.grad.numpy()

    def decoder():
        with torch.no_grad():
            return vae.decode(z[:1]).sample.numpy()

    return [
        row._replace(name=f"diffusers: {row.name}", seconds=timed(call, repeats))
        for row, call in zip(rows, (network, encoder, decoder), strict=False)
    ]


def main() -> None:
    """Time all, in the precision that the command line names, and print the table."""
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    repeats = 3
    n = 4096
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: x @ x)
    peak = Row(
        f"matmul {n} x {n}, {dtype}", "products", 1, timed(lambda: product(a), 5), 2.0 * n**3
    )
    rows = ours(dtype, repeats)
    gc.collect()
    if jax.default_backend() == "cpu" and dtype == "float32":
        rows += theirs(rows[:3], repeats)
    print(table([peak, *rows]))


if __name__ == "__main__":
    main()
