"""Every program of the configs for accelerators is lowered for TPU and CUDA, of full size.

No device, no weights and no memory are needed: shapes alone go in. As a program, it counts the
operations of a step of each, a view (docs/scaling.md):

    python -m tests.test_lowering
"""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import pytest

from dreamjax.distill.facing import make_find_front
from dreamjax.distill.objective import Frozen
from dreamjax.distill.step import init_state, make_sds_step
from dreamjax.export.chunks import CHUNK
from dreamjax.main import load_config, override
from dreamjax.nets.stable_diffusion.clip import CLIPText
from dreamjax.nets.stable_diffusion.vae import AutoencoderKL
from dreamjax.nets.text import Text
from dreamjax.priors import words
from dreamjax.tasks import dream
from dreamjax.tasks.dream import make_update
from dreamjax.training import parallel

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
# As published, what says the same as the defaults left out.
SD15 = MappingProxyType({
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    },
    "unet/config.json": {
        "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
        "cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": [CROSS, CROSS, CROSS, PLAIN],
    },
    "vae/config.json": {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "in_channels": 3, "out_channels": 3, "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder/config.json": {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
})  # fmt: skip


def write_sd15(folder):
    """The published model's description, without weights."""
    for name, content in SD15.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def shapes(function, *args):
    return jax.eval_shape(function, *args)


def frozen_shapes(task) -> Frozen:
    """The shapes of the prior's weights and of its reading of a prompt."""
    net = task.prior.net
    params = shapes(net.init, jax.random.key(0))
    if hasattr(net, "vae"):
        params |= {"rgb_to_latent": jax.ShapeDtypeStruct((4, net.vae.latent_channels), jnp.float32)}
        length, dim = net.text.max_position_embeddings, net.text.hidden_size
        names = words.PAPER_VIEWS
    else:
        length, dim, names = net.text.length, net.text.dim, net.view_names
    count = len(words.all_names(names))

    def text(rows):
        tokens = jax.ShapeDtypeStruct((rows, length, dim), jnp.float32)
        return Text(tokens, jax.ShapeDtypeStruct((rows, length), jnp.bool_))

    return Frozen(params, words.ViewTexts(text(count), text(1), None))


def lowered(program, *args) -> None:
    """Lower for both kinds of accelerator."""
    exported = jax.export.export(jax.jit(program), platforms=["tpu", "cuda"])(*args)
    assert exported.platforms == ("tpu", "cuda")


TASKS = ("tpu_v4", "sd15", "tpu_v4 with Stable Diffusion")


def make_task(words_of_it: str, folder):
    """A task of one view a step; `folder` takes the description of Stable Diffusion."""
    name, _, other = words_of_it.partition(" with ")
    found = override(load_config(name), ["--config.prompt=a red ball", "--config.batch_views=1"])
    if other:
        parts = ["--config.prior=stable_diffusion", "--config.prior.dtype=bfloat16"]
        found = override(found, [*parts, "--config.prior.remat=True"])
    if name == "sd15" or other:
        found = override(found, [f"--config.prior.weights={write_sd15(folder)}"])
    return found


@pytest.fixture(params=TASKS)
def task(request, tmp_path):
    return make_task(request.param, tmp_path)


def state_of(task):
    txs = task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)
    return shapes(lambda key: init_state(key, task, {}, *txs), jax.random.key(0))


@pytest.mark.slow
def test_every_step(task):
    """Each phase, as a dispatch of the task takes it, alone and as one of many scenes."""
    frozen, state, key = frozen_shapes(task), state_of(task), jax.random.key(0)
    devices = parallel.devices_for(task.batch_views)
    index = parallel.split_indices(task.batch_views, devices)
    for phase in task.phases:
        lowered(dream.make_program(task, phase, devices), state, index, frozen, key)

    def led(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 1, *x.shape), x.dtype), tree)

    here = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    program = dream.make_programs(task, devices)(task.steps - 1)[-1]
    lowered(program, led(state), led(frozen.embedded), here, index[0], frozen.params, key)


@pytest.mark.slow
def test_what_is_done_beside_steps(task):
    """Pictures, the mesh's field, texts, the cheap encoder, the question for the front."""
    state, frozen, key = state_of(task), frozen_shapes(task), jax.random.key(0)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    clock = dream.Clock(*[jax.ShapeDtypeStruct((), jnp.int32)] * 2)
    sizes = {task.preview_size, *(e.size for e in task.exports if hasattr(e, "size"))}
    for size in sizes:
        picture = functools.partial(dream._picture, task.scene, size=size)
        lowered(picture, state.scene.params, state.front, clock, number, number)
    points = jax.ShapeDtypeStruct((CHUNK, 3), jnp.float32)
    matter = functools.partial(dream._matter, task.scene)
    lowered(matter, state.scene.params, state.front, clock, points)
    find_front = make_find_front(dream.Facing(draws=1), task, task.prior)
    lowered(find_front, frozen, state.scene.params, clock, key)
    net = task.prior.net
    if hasattr(net, "vae"):
        ids = jax.ShapeDtypeStruct((5, 77), jnp.int32)
        lowered(CLIPText(net.text).apply, {"params": frozen.params["text"]}, ids)
        flat = jax.ShapeDtypeStruct((27, 64, 64, 3), jnp.float32)
        encode = functools.partial(AutoencoderKL(net.vae).apply, method="encode")
        lowered(encode, {"params": frozen.params["vae"]}, flat)


def count(task, phase) -> float:
    """Operations of one step of one view, by XLA's count of the program before optimisation."""
    txs = task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)
    renderer = dataclasses.replace(task.renderer, chunk=0)  # a loop would be counted once
    task = dataclasses.replace(task, renderer=renderer)
    step = make_sds_step(
        task, task.prior, task.objective, phase, task.steps, make_update(*txs), parallel.alone
    )
    args = state_of(task), jnp.zeros(1, jnp.int32), frozen_shapes(task), jax.random.key(0)
    return jax.jit(step).lower(*args).cost_analysis()["flops"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in TASKS:
            task = make_task(name, Path(folder))
            for phase in task.phases:
                print(f"{name}, {phase}: {count(task, phase) / 1e12:.3f} TFLOP", flush=True)
