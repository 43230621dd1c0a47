"""`task = train_probe`: train the probe that `evaluate` reads pictures with.

It sees its own draws of the toybox (every combination of kind and colours, and the three looks
alike often), softened and roughened a little, since samples and dreams are never as clean as
renders. The colours of textureless pictures count for nothing.
"""

import dataclasses
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from dreamjax.config import build, check_workdir
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate.prompts import has_second
from dreamjax.evaluate.scores import accuracy
from dreamjax.scene.shading import ShadingConfig
from dreamjax.toybox.draw import LOOKS, TEXTURELESS, ToyboxConfig
from dreamjax.toybox.kinds import KINDS
from dreamjax.toybox.pictures import Labelled, draw_chunks
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import train
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from dreamjax.training.state import PriorState, ema_update, init_prior_state

DRAWS = ToyboxConfig(shading=ShadingConfig(shaded=2 / 3, textureless=1 / 2))


@dataclasses.dataclass(frozen=True)
class SoftenConfig:
    """How pictures are changed: ranges and half-widths of uniform draws.

    `blur` is the width of a Gaussian and `shift` an offset, both in pixels; `zoom` a factor; `gain`
    of all channels and `tint` of each are relative; `noise` is the largest standard deviation.
    """

    blur: tuple[float, float] = (0.3, 0.8)
    zoom: tuple[float, float] = (0.88, 1.12)
    shift: float = 1.5
    gain: float = 0.15
    tint: float = 0.06
    noise: float = 0.04


@dataclasses.dataclass(frozen=True)
class TrainProbeConfig:
    """Everything about a training run; `pictures` to learn from, `fresh` ones to be measured on."""

    seed: int = 0
    pictures: int = 32768
    fresh: int = 6144
    steps: int = 4000
    batch_size: int = 64
    steps_per_dispatch: int = 1
    ema_decay: float = 0.998
    log_every: int = 50
    checkpoint_every: int = 500
    soften: SoftenConfig = SoftenConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


def run(config, workdir: str) -> None:
    """Train, going on from the newest checkpoint in `workdir`, and write `probe.safetensors`.

    The file's metadata and the output hold the accuracies on fresh renders.
    """
    settings = dict(config)
    settings.pop("task")
    c = build(TrainProbeConfig, settings)
    workdir = check_workdir(workdir, config, harmless=("log_every",))
    net = probes.make_config()
    blank = jnp.zeros((1, probes.SIZE, probes.SIZE, 3))
    params = jax.jit(probes.Probe(net).init)(jax.random.key(c.seed), blank)["params"]
    tx = make_optimizer(c.optimizer, c.steps)
    state = init_prior_state(params, tx)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore_latest(state) or state

    start = int(state.step)
    if start < c.steps:
        data = _drawn("probe", c.pictures)
        state = _train(c, net, tx, state, data, checkpoints, workdir)
    report = measure(net, state.ema, _drawn("probe_fresh", c.fresh), c)
    report["training"] = {
        "pictures": c.pictures,
        "steps": c.steps,
        "batch_size": c.batch_size,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    probes.save(workdir / "probe.safetensors", probes.Shipped(net, state.ema, report))
    print(table(report))
    print(f"wrote {workdir / 'probe.safetensors'}")


def _drawn(split: str, count: int) -> Labelled:
    parts = []
    with Progress(count, show=()) as bar:
        bar.note(f"drawing {count} pictures ({split})")
        for chunk in draw_chunks(split, count, probes.SIZE, DRAWS):
            parts.append(chunk)
            bar.update(sum(len(part.kind) for part in parts))
    return Labelled(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def _train(c, net, tx, state: PriorState, data: Labelled, checkpoints, workdir) -> PriorState:
    devices = parallel.devices_for(c.batch_size)
    step_fn = parallel.pmap(parallel.scan(make_step(net, c, tx)), devices)
    state, base_key = parallel.replicate((state, jax.random.key(c.seed)), devices)
    shape = (c.steps_per_dispatch, c.batch_size)
    index = np.broadcast_to(np.arange(c.batch_size, dtype=np.int32), shape)

    def take(step, state):
        draws = [np.random.default_rng([c.seed, step + i]) for i in range(shape[0])]
        rows = np.stack([draw.integers(len(data.kind), size=shape[1]) for draw in draws])
        batch = (index, jax.tree.map(lambda leaf: leaf[rows], data))
        return step_fn(state, parallel.split_batch(batch, devices, shape[0]), base_key)

    return train(
        take,
        state,
        workdir,
        checkpoints,
        steps=c.steps,
        steps_per_dispatch=c.steps_per_dispatch,
        log_every=c.log_every,
        checkpoint_every=c.checkpoint_every,
        show=("loss", "grad_norm"),
    )


def soften(
    key: Key[Array, ""], rgb: Float[Array, "s s 3"], c: SoftenConfig
) -> Float[Array, "s s 3"]:
    """A picture in [0, 1] blurred, zoomed, shifted, mirrored, tinted and with noise, at random."""
    keys = jax.random.split(key, 9)
    uniform = lambda i, low, high, shape=(): jax.random.uniform(  # noqa: E731
        keys[i], shape, minval=low, maxval=high
    )
    size = rgb.shape[0]
    places, middle = jnp.arange(size, dtype=jnp.float32), (size - 1) / 2
    zoom, width = uniform(0, *c.zoom), uniform(1, *c.blur)
    shift = uniform(2, -c.shift, c.shift, (2,))

    def resampling(shift):
        at = jnp.clip(middle + (places - middle) / zoom + shift, 0.0, size - 1.0)
        weight = jnp.exp(-0.5 * jnp.square((places - at[:, None]) / width))
        return weight / weight.sum(-1, keepdims=True)

    down, across = resampling(shift[0]), resampling(shift[1])
    across = jnp.where(jax.random.bernoulli(keys[3]), across[::-1], across)
    rgb = jnp.einsum("ij,jkc,lk->ilc", down, rgb, across)
    rgb = rgb * (1.0 + uniform(4, -c.gain, c.gain)) * (1.0 + uniform(5, -c.tint, c.tint, (3,)))
    noise = uniform(6, 0.0, c.noise) * jax.random.normal(keys[7], rgb.shape)
    return jnp.clip(rgb + noise, 0.0, 1.0)


def make_step(net, c: TrainProbeConfig, tx):
    """One step on one device's share of (indices, pictures); example i draws from its own key."""
    two = jnp.asarray([has_second(kind) for kind in range(len(KINDS))])

    def step(state: PriorState, batch: tuple[Int[Array, " b"], Labelled], base_key):
        index, data = batch
        step_key = jax.random.fold_in(base_key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, index)
        rgb = data.rgb.astype(jnp.float32) / 255.0
        rgb = jax.vmap(lambda k, picture: soften(k, picture, c.soften))(keys, rgb)
        colored = (data.look != TEXTURELESS).astype(jnp.float32)
        truth = (data.kind, data.colors[:, 0], data.colors[:, 1], data.view)
        weights = (1.0, colored, colored * two[data.kind], 1.0)

        def loss_fn(params):
            heads = probes.logits(net, params, rgb)
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            losses = [
                jnp.mean(weight * cross_entropy(head, labels))
                for head, labels, weight in zip(heads, truth, weights, strict=True)
            ]
            return sum(losses)

        loss, grads = parallel.mean(jax.value_and_grad(loss_fn)(state.params))
        params, opt_state, metrics = apply_gradients(tx, grads, loss, state.params, state.opt_state)
        ema = ema_update(state.ema, params, c.ema_decay, state.step + 1)
        return PriorState(state.step + 1, params, ema, opt_state), {"loss": loss, **metrics}

    return step


def measure(net, params, data: Labelled, c: TrainProbeConfig) -> dict:
    """Counts [right, of] on `data` by look, on softened pictures of all looks, and by kind."""
    truth = probes.Labels(data.kind, data.colors[:, 0], data.colors[:, 1], data.view)
    # As the file will hold them: rounded to float16.
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16).astype(jnp.float32), params)
    probe = probes.Shipped(net, params, {})
    keys = jax.random.split(jax.random.key(c.seed + 1), len(data.kind))
    softened = jax.jit(jax.vmap(lambda k, picture: soften(k, picture / 255.0, c.soften)))
    predicted = probes.read(data.rgb / np.float32(255.0), probe).labels
    rough = probes.read(np.asarray(softened(keys, data.rgb.astype(np.float32))), probe).labels
    colored = data.look != TEXTURELESS

    def part(labels, rows):
        pick = lambda group: probes.Labels(*(leaf[rows] for leaf in group))  # noqa: E731
        return probes.score(pick(labels), pick(truth), colored[rows])

    report = {name: part(predicted, data.look == look) for look, name in enumerate(LOOKS)}
    report["softened"] = part(rough, np.ones(len(colored), bool))
    report = {"looks": report, "kind_by_kind": {}, "view_by_kind": {}}
    for kind, entry in enumerate(KINDS):
        rows = data.kind == kind
        report["kind_by_kind"][entry.name] = accuracy(predicted.kind, truth.kind, rows)
        report["view_by_kind"][entry.name] = accuracy(predicted.view, truth.view, rows)
    return report


def table(report: dict) -> str:
    """The accuracies by look as Markdown."""
    heads = ("kind", "first", "second", "object", "view")
    lines = ["| fresh renders | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for look, counts in report["looks"].items():
        cells = [
            f"{100 * counts[head][0] / counts[head][1]:.1f} % of {counts[head][1]}"
            if counts[head][1]
            else "-"
            for head in heads
        ]
        lines.append(f"| {look} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
