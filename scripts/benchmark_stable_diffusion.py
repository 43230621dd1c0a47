"""Times Stable Diffusion at full size with random weights: UNets, VAE, one distillation step.

    scripts/benchmark_stable_diffusion [float32|bfloat16]

Operations are XLA's own count of the compiled program, memory its plan: temporary buffers beside
the arguments. Where PyTorch and diffusers are installed, their networks do the same in the same
run, on the CPU; their rates are for the operations that XLA counted.
"""

import gc
import resource
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dreamjax.clock import Clock
from dreamjax.diffusion.schedule import scaled_linear
from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase, init_state, make_sds_step
from dreamjax.nets.stable_diffusion.clip import CLIPTextConfig
from dreamjax.nets.stable_diffusion.unet import SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import VAEConfig
from dreamjax.nets.text import Text
from dreamjax.priors.base import Conditions
from dreamjax.priors.stable_diffusion import StableDiffusionNets
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.camera import orbit
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer
from dreamjax.scene.scene import Scene
from dreamjax.scene.views import Views
from dreamjax.tasks.benchmark import Row, table, timed
from dreamjax.tasks.dream import make_update
from dreamjax.training.optimizer import Adam

REPEATS = 2
WIDTHS = {"1.5": 768, "2.1-base": 1024}
HEADS = {"1.5": (8,) * 4, "2.1-base": (5, 10, 20, 20)}
SDS = "distillation: gradient of a 64 x 64 picture"


class Told(StableDiffusionNets):
    """The networks as a prior whose embedded prompt is a text and the null text."""

    def condition(self, embedded, views: Views) -> Conditions:
        """The same text for every view."""
        return Conditions(*embedded)


def prior_of(version: str, dtype: str) -> Told:
    """The networks of a version at their published sizes."""
    unet = SDUNetConfig(
        cross_attention_dim=WIDTHS[version],
        heads=HEADS[version],
        use_linear_projection=version != "1.5",
        dtype=dtype,
    )
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    vae = VAEConfig(dtype=dtype, remat=True)
    return Told(unet, vae, text, scaled_linear(1000), "eps", "")


def random_params(prior: Told):
    """Parameters of the right shapes, small and not zero, without the time that `init` takes."""
    shapes = jax.eval_shape(prior.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)


def measure(name: str, unit: str, count: int, function: Callable, *args) -> Row:
    """A row for the compiled function; its operations and its memory are told."""
    program = jax.jit(function).lower(*args).compile()
    cost = program.cost_analysis()
    flops = float((cost[0] if isinstance(cost, list) else cost)["flops"])
    memory = program.memory_analysis()
    seconds = timed(partial(program, *args), REPEATS)
    print(
        f"{name}: {flops / 1e12:.3f} TFLOP in {seconds:.2f} s, "
        f"{memory.temp_size_in_bytes / 2**30:.2f} GiB temporary, "
        f"{memory.argument_size_in_bytes / 2**30:.2f} GiB of arguments; peak so far "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB",
        flush=True,
    )
    return Row(name, unit, count, seconds, flops)


def unet_row(version: str, dtype: str) -> Row:
    """A guided pair through the UNet."""
    prior = prior_of(version, dtype)
    text = Text(jnp.zeros((2, 77, WIDTHS[version])), jnp.ones((2, 77), bool))
    z = jax.random.normal(jax.random.key(0), (2, 64, 64, 4))
    params, t = random_params(prior), jnp.full(2, 500)
    name = f"UNet {version}, 2 latents of 64 x 64"
    return measure(name, "latents", 2, prior.predict, params, z, t, text)


def ours(dtype: str) -> list[Row]:
    """Rows for the UNets, encoder, decoder, the objective, and a step of that size."""
    rows = [unet_row("2.1-base", dtype), unet_row("1.5", dtype)]
    prior = prior_of("1.5", dtype)
    params = random_params(prior)
    key = jax.random.key(0)
    rgb, z = jax.random.uniform(key, (1, 512, 512, 3)), jnp.zeros((1, 64, 64, 4))

    def pull(params, rgb):
        return jax.grad(lambda x: jnp.sum(prior.encode(params, x, key[None])))(rgb)

    name = "VAE encoder with its gradient, 512 x 512"
    rows.append(measure(name, "images", 1, pull, params, rgb))
    rows.append(measure("VAE decoder, 512 x 512", "images", 1, prior.decode, params, z))

    sds = Sds(guidance_scale=100.0)
    words = Text(jnp.zeros((1, 77, 768)), jnp.ones((1, 77), bool))
    frozen = Frozen(params, (words, words))
    camera = jax.tree.map(lambda x: jnp.asarray(x)[None], orbit(0.0, 20.0, 3.0, 1.2))
    views = Views(camera, jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.zeros(1))

    def push(frozen, rgb):
        def loss(rgb):
            now = Clock(0, 10_000)
            return sds.loss(prior, frozen, {}, rgb, views, key, now, False).scene

        return jax.grad(loss)(rgb)

    rows.append(measure(SDS, "pictures", 1, push, frozen, rgb[:, :64, :64]))

    scene = Scene(
        field=Mlp(width=128, blocks=4, max_deg=8, dtype=dtype),
        renderer=Renderer(samples=64, normal_samples=16, radius=1.0),
        background=Learned(),
    )
    tx = Adam().make(10_000)
    phase, update = Phase(size=64), make_update(tx, tx)
    step = make_sds_step(scene, prior, sds, phase, 10_000, update, lambda tree: tree)
    args = (init_state(key, scene, {}, tx, tx), jnp.zeros(1, jnp.int32), frozen, key)
    rows.append(measure("sds_step, one view of 64 x 64, shaded", "steps", 1, step, *args))
    return rows


def theirs(rows: list[Row]) -> list[Row]:
    """The same of diffusers' networks, where they are installed; PyTorch uses all cores too."""
    try:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
    except ImportError:
        print("PyTorch and diffusers are not installed: nothing to compare with")
        return []
    found = {row.name: row for row in rows}
    timings = []

    def note(name: str, call: Callable) -> None:
        row = found[name]._replace(name=f"diffusers: {name}", seconds=timed(call, REPEATS))
        print(f"{row.name}: {row.seconds:.2f} s", flush=True)
        timings.append(row)

    def make_unet(version: str):
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            sample_size=64,
            cross_attention_dim=WIDTHS[version],
            attention_head_dim=HEADS[version],
            use_linear_projection=version != "1.5",
            down_block_types=[*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        ).eval()

    def predict(unet, z):
        with torch.no_grad():
            return unet(
                z, torch.full((2,), 500), torch.zeros(2, 77, unet.config.cross_attention_dim)
            ).sample

    z = torch.randn(2, 4, 64, 64)
    for version in WIDTHS:
        gc.collect()
        unet = make_unet(version)
        note(f"UNet {version}, 2 latents of 64 x 64", lambda unet=unet: predict(unet, z).numpy())
        if version == "1.5":
            kept = unet
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ).eval()
    vae.requires_grad_(False)

    def encoder():
        x = torch.rand(1, 3, 512, 512).requires_grad_()
        vae.encode(2 * x - 1).latent_dist.sample().sum().backward()
        return x.grad.numpy()

    def decoder():
        with torch.no_grad():
            return vae.decode(z[:1]).sample.numpy()

    def distil():
        small = torch.rand(1, 3, 64, 64).requires_grad_()
        x = torch.nn.functional.interpolate(small, (512, 512), mode="bilinear")
        z_0 = 0.18215 * vae.encode(2 * x - 1).latent_dist.sample()
        eps = torch.randn_like(z_0)
        z_t = (0.7 * z_0 + 0.7 * eps).detach()
        eps_cond, eps_uncond = predict(kept, torch.cat([z_t, z_t])).chunk(2)
        residual = eps_uncond + 100.0 * (eps_cond - eps_uncond) - eps
        (residual * z_0).sum().backward()
        return small.grad.numpy()

    note("VAE encoder with its gradient, 512 x 512", encoder)
    note("VAE decoder, 512 x 512", decoder)
    note(SDS, distil)
    return timings


def main() -> None:
    """Time all, in the precision that the command line names, and print the table."""
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    if dtype not in ("float32", "bfloat16"):
        sys.exit(f"usage: scripts/benchmark_stable_diffusion [float32|bfloat16], not {dtype}")
    n = 4096
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: x @ x)
    seconds = timed(lambda: product(a), 5)
    rows = [Row(f"matmul {n} x {n}, {dtype}", "products", 1, seconds, 2.0 * n**3), *ours(dtype)]
    gc.collect()
    if jax.default_backend() == "cpu" and dtype == "float32":
        rows += theirs(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
