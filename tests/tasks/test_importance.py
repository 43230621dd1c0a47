"""What drawing t by the losses seen does to the gradient of the bound of a real network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.data.digits import Digits
from dreamjax.data.images import to_x
from dreamjax.diffusion import losses, timesteps
from dreamjax.tasks.train_diffusion import (
    Adm,
    NoiseSchedule,
    TrainDiffusion,
    fetcher,
    make_net,
    make_problem,
)
from dreamjax.training import parallel
from dreamjax.training.fit import Batch, make_step
from dreamjax.training.optimizer import Adam
from dreamjax.training.state import init_state

CHUNK = 32


def trained(steps=200):
    """A small network of the digits after a few steps of the hybrid loss, and the digits."""
    task = TrainDiffusion(
        variance="learned_range",
        loss="hybrid",
        schedule=NoiseSchedule(shape="cosine"),
        net=Adm(32, channel_mults=(1,), res_blocks=1, attention_sizes=()),
    )
    data = Digits().load("train")
    net = make_net(task, data)
    tx = Adam(learning_rate=2e-3).make(steps)
    devices = jax.devices()[:1]
    step = make_step(make_problem(net, task, flip=False), tx, task.ema_decay)
    step = parallel.pmap(step, devices)
    state = init_state(jax.jit(net.init)(jax.random.key(0)), tx)
    state, key = parallel.replicate((state, jax.random.key(0)), devices)
    index = np.arange(task.batch_size, dtype=np.int32)
    fetch = fetcher(data, 0, task.batch_size)
    for number in range(steps):
        batch = Batch(index, fetch(number))
        state, _ = step(state, parallel.split_batch(batch, devices), key)
    return net, parallel.first_copy(state).params, data


@pytest.mark.slow
@pytest.mark.large
def test_importance_lowers_the_variance_of_the_bounds_gradient():
    """Of all parameters together, and without moving its mean (arXiv 2102.09672 section 3.3)."""
    net, params, data = trained()
    T = net.schedule.num_steps

    def term(params, row, t, weight):
        x_0, label, eps = row

        def predict(x_t, t):
            return net.predict(params, x_t, t, label[None])

        p, one = net.parameterisation, (x_0[None], t[None], eps[None])
        return weight * losses.vlb_loss(predict, net.schedule, p, *one, net.levels)[0]

    each = jax.jit(jax.vmap(term, (None, 0, 0, 0)))
    gradients = jax.vmap(jax.grad(term), (None, 0, 0, 0))

    @jax.jit
    def moments(params, row, t, weight):
        """Sum of the gradients, and of their squared lengths."""
        found = gradients(params, row, t, weight)
        square = sum(jnp.sum(g**2) for g in jax.tree.leaves(found))
        return jax.tree.map(lambda g: jnp.sum(g, 0), found), square

    def drawn(seed, count):
        rng = np.random.default_rng(seed)
        images, labels = data.rows(rng.integers(data.count, size=count))
        eps = np.float32(rng.standard_normal(images.shape))
        return to_x(images, data.levels), labels, eps

    memory = timesteps.second_moment(T)
    for seed in range(memory.losses.shape[1]):
        t = jnp.arange(T)
        memory = jax.jit(timesteps.remember)(
            memory, t, each(params, drawn(seed, T), t, jnp.ones(T))
        )

    def measure(t, weight):
        """Mean gradient, its variance for one example, and the loss's variance."""
        count = len(t)
        rows = drawn(99, count)
        total, square, values = None, 0.0, []
        for start in range(0, count, CHUNK):
            cut = slice(start, start + CHUNK)
            part = jax.tree.map(lambda a, cut=cut: a[cut], (rows, t, weight))
            found, length = moments(params, *part)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
            square += float(length) / count
            values.append(each(params, *part))
        mean = np.concatenate([np.ravel(g) for g in jax.tree.leaves(total)]) / count
        return mean, square - np.sum(np.float64(mean) ** 2), np.var(np.concatenate(values))

    count, key = 1024, jax.random.key(5)
    even = timesteps.uniform(key, (count,), 0, T)
    mean, variance, loss_variance = measure(even, jnp.ones(count))
    by_loss = timesteps.by_importance(key, (count,), timesteps.probabilities(memory))
    mean_2, variance_2, loss_variance_2 = measure(*by_loss)
    print(f"gradient {variance:.4g} -> {variance_2:.4g}, {variance / variance_2:.1f} times")
    print(f"loss {loss_variance:.4g} -> {loss_variance_2:.4g}")
    assert variance_2 < variance / 2
    # The means differ by no more than their errors.
    off = np.sum((mean - mean_2) ** 2)
    assert off < 3 * (variance + variance_2) / count, (off, (variance + variance_2) / count)
