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
from dreamjax.priors.mvdream import MVDream
from dreamjax.tasks import dream
from dreamjax.tasks.dream import make_update
from dreamjax.training import parallel

from .tiny_mvdream import UNET as MVDREAM_UNET

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
# Its autoencoder is Stable Diffusion's, its text encoder that of 2.1.
MVDREAM = MappingProxyType({
    **SD15,
    "model_index.json": {"_class_name": "MVDreamPipeline"},
    "unet/config.json": MVDREAM_UNET,
    "text_encoder/config.json": {
        **SD15["text_encoder/config.json"], "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu",
    },
})  # fmt: skip


def write_model(folder, files=SD15):
    """The published model's description, without weights."""
    for name, content in files.items():
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

    if isinstance(task.prior, MVDream):  # its views are told by number
        return Frozen(params, text(2))
    return Frozen(params, words.ViewTexts(text(count), text(1), None))


def lowered(program, *args) -> None:
    """Lower for both kinds of accelerator."""
    exported = jax.export.export(jax.jit(program), platforms=["tpu", "cuda"])(*args)
    assert exported.platforms == ("tpu", "cuda")


TASKS = ("tpu_v4", "sd15", "tpu_v4 with Stable Diffusion")
OTHERS = ("prolificdreamer", "mvdream")  # lowered a step, not more


def make_task(words_of_it: str, folder):
    """A task of the fewest views a step; `folder` takes the description of Stable Diffusion."""
    name, _, other = words_of_it.partition(" with ")
    views = MVDream.views_together if name == "mvdream" else 1
    told = ["--config.prompt=a red ball", f"--config.batch_views={views}"]
    found = override(load_config(name), told)
    if other:
        parts = ["--config.prior=stable_diffusion", "--config.prior.dtype=bfloat16"]
        found = override(found, [*parts, "--config.prior.remat=True"])
    if name != "tpu_v4" or other:
        files = MVDREAM if name == "mvdream" else SD15
        found = override(found, [f"--config.prior.weights={write_model(folder, files)}"])
    return found


@pytest.fixture(params=TASKS)
def task(request, tmp_path):
    return make_task(request.param, tmp_path)


def state_of(task, frozen):
    """The shapes of the first state, what the objective trains among them."""
    txs = task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)

    def first(key, frozen):
        return init_state(key, task, task.objective.init(key, task.prior, frozen), *txs)

    return shapes(first, jax.random.key(0), frozen)


@pytest.mark.slow
def test_every_step(task):
    """Each phase, as a dispatch of the task takes it, alone and as one of many scenes."""
    frozen, key = frozen_shapes(task), jax.random.key(0)
    state = state_of(task, frozen)
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
@pytest.mark.parametrize("name", OTHERS)
def test_every_step_of_others(name, tmp_path):
    """Each phase, with the adapter that is trained beside the scene, or four views together."""
    task = make_task(name, tmp_path)
    frozen = frozen_shapes(task)
    state, key = state_of(task, frozen), jax.random.key(0)
    devices = parallel.devices_for(1)
    index = jnp.arange(task.batch_views)[None]
    for phase in task.phases:
        lowered(dream.make_program(task, phase, devices), state, index, frozen, key)


@pytest.mark.slow
def test_what_is_done_beside_steps(task):
    """Pictures, the mesh's field, texts, the cheap encoder, the question for the front."""
    frozen, key = frozen_shapes(task), jax.random.key(0)
    state = state_of(task, frozen)
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
    frozen = frozen_shapes(task)
    args = state_of(task, frozen), jnp.zeros(1, jnp.int32), frozen, jax.random.key(0)
    return jax.jit(step).lower(*args).cost_analysis()["flops"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in TASKS:
            task = make_task(name, Path(folder))
            for phase in task.phases:
                print(f"{name}, {phase}: {count(task, phase) / 1e12:.3f} TFLOP", flush=True)
