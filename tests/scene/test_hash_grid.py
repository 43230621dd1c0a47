"""The hash grid against a float64 NumPy lookup, finite differences and closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import choose
from dreamjax.errors import UserError
from dreamjax.scene.fields import hash_grid
from dreamjax.scene.fields.hash_grid import HashGrid
from dreamjax.scene.scene import Scene
from dreamjax.training.optimizer import Adam, apply_gradients

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Two levels whose tables hold them whole and two that are hashed.
FIELD = HashGrid(levels=4, coarsest=3, finest=24, log2_entries=9, width=8, extent=1.25)
RNG = np.random.default_rng(11)
POINT = np.full((1, 1), 1e-12)


@pytest.fixture(scope="module")
def params():
    """With tables that are not all but zero, in units of features."""
    params = jax.jit(FIELD.init)(jax.random.key(1))
    draws = {name: RNG.normal(size=t.shape) / FIELD.rate for name, t in params["tables"].items()}
    return params | {"tables": jax.tree.map(jnp.float32, draws)}


encode = jax.jit(FIELD.encode)
apply = jax.jit(FIELD)
interpolate = jax.jit(hash_grid.interpolate, static_argnums=2)


def hashed(vertex, entries):
    """Equation 4 with whole numbers of any length."""
    x, y, z = (int(v) for v in vertex)
    return ((x * 1) ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % entries


def lookup(tables, mean, var, field=FIELD):
    """One point after the other, one vertex after the other."""
    out = []
    growth = math.exp((math.log(field.finest) - math.log(field.coarsest)) / (field.levels - 1))
    for point, variance in zip(np.float64(mean), np.float64(var), strict=True):
        features = []
        for level in range(field.levels):
            cells = math.floor(field.coarsest * growth**level + 1e-9)
            table = np.float64(tables[f"level_{level}"])
            place = np.clip((point + field.extent) / (2 * field.extent), 0, 1) * cells
            low = np.minimum(np.floor(place), cells - 1).astype(int)
            total = np.zeros(field.features)
            for dx in (0, 1):
                for dy in (0, 1):
                    for dz in (0, 1):
                        vertex = low + (dx, dy, dz)
                        share = np.prod(1 - np.abs(place - vertex))
                        if (cells + 1) ** 3 <= 2**field.log2_entries:
                            row = np.ravel_multi_index(tuple(vertex), (cells + 1,) * 3)
                        else:
                            row = hashed(vertex, 2**field.log2_entries)
                        total += share * table[row]
            sigma, per_unit = math.sqrt(variance.mean()), cells / (2 * field.extent)
            features.append(field.rate * total * math.erf(1 / (math.sqrt(8) * sigma * per_unit)))
        out.append(np.concatenate(features))
    return np.array(out)


def forward(params, mean, var):
    x = lookup(params["tables"], mean, var)
    head = jax.tree.map(np.float64, params["head"])
    x = x @ head["hidden"]["kernel"] + head["hidden"]["bias"]
    x = x / (1 + np.exp(-x)) @ head["head"]["kernel"] + head["head"]["bias"]
    return x[:, 0], 1 / (1 + np.exp(-x[:, 1:]))


def test_levels():
    assert FIELD.resolutions == (3, 6, 12, 24)
    assert [FIELD.entries(n) for n in FIELD.resolutions] == [64, 343, 512, 512]
    assert HashGrid(levels=1).resolutions == (4,)
    # The published ones: b is 1.3819 for a finest of 2048.
    published = HashGrid(levels=16, coarsest=16, finest=2048, log2_entries=19).resolutions
    assert published == tuple(math.floor(16 * 128 ** (i / 15) + 1e-9) for i in range(16))


def test_field_against_numpy(params):
    mean = RNG.uniform(-1.2, 1.2, size=(200, 3))
    var = 10.0 ** RNG.uniform(-5, -1, size=(200, 3))
    np.testing.assert_allclose(
        encode(params["tables"], jnp.float32(mean), jnp.float32(var)),
        lookup(params["tables"], mean, var),
        atol=2e-5,
    )
    found = apply(params, jnp.float32(mean), jnp.float32(var))
    log_density, albedo = forward(params, mean, var)
    np.testing.assert_allclose(found.log_density, log_density, atol=1e-5)
    np.testing.assert_allclose(found.albedo, albedo, atol=1e-5)
    assert np.ptp(found.albedo) > 0.05


@pytest.mark.parametrize("cells", [1, 9, 2048, 65_536])
def test_the_hash_is_the_published_one(cells):
    """Of places up to the last vertex of the finest level there can be."""
    vertex = np.concatenate([RNG.integers(0, cells + 1, size=(50, 3)), [[cells] * 3, [0, 0, 0]]])
    entries = 2**6
    found = hash_grid.entry_of(jnp.uint32(vertex), cells, entries)
    if (cells + 1) ** 3 != entries:
        np.testing.assert_array_equal(found, [hashed(v, entries) for v in vertex])
    assert found.dtype == jnp.uint32


def test_a_table_that_holds_a_lattice_gives_each_vertex_its_own_entry():
    cells = 5
    vertex = np.stack(np.meshgrid(*[np.arange(cells + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    found = hash_grid.entry_of(jnp.uint32(vertex), cells, (cells + 1) ** 3)
    np.testing.assert_array_equal(np.sort(found), np.arange((cells + 1) ** 3))


def test_a_linear_function_on_a_lattice_is_itself():
    """Also on vertices, on the faces between cells, and on the border."""
    cells = 4
    axes = np.linspace(0, 1, cells + 1)
    vertex = np.stack(np.meshgrid(axes, axes, axes, indexing="ij"), -1).reshape(-1, 3)
    slope = np.array([[2.0, -1.0], [0.5, 3.0], [-4.0, 1.0]])
    table = jnp.float32(vertex @ slope + 0.25)
    place = np.concatenate([RNG.uniform(size=(50, 3)), vertex, RNG.choice(axes, size=(20, 3))])
    found = interpolate(table, jnp.float32(place), cells)
    np.testing.assert_allclose(found, place @ slope + 0.25, atol=2e-6)

    def first(place):
        return hash_grid.interpolate(table, place, cells)[0]

    gradient = jax.jit(jax.vmap(jax.grad(first)))(jnp.float32(place))
    np.testing.assert_allclose(gradient, np.broadcast_to(slope[:, 0], place.shape), atol=2e-5)


def test_gradients_against_finite_differences(params):
    """On tables and on places, of the float64 reference."""
    mean, var = RNG.uniform(-1.2, 1.2, size=(12, 3)), np.full((12, 1), 3e-3)
    weights = RNG.normal(size=(12, FIELD.levels * FIELD.features))

    def value(tables, mean):
        return jnp.sum(encode(tables, mean, jnp.float32(var)) * jnp.float32(weights))

    on_tables, on_mean = jax.jit(jax.grad(value, argnums=(0, 1)))(
        params["tables"], jnp.float32(mean)
    )
    tables = jax.tree.map(np.float64, params["tables"])
    step = 1e-6
    for _ in range(3):
        away = {name: RNG.normal(size=t.shape) for name, t in tables.items()}
        ahead = {name: tables[name] + step * away[name] for name in tables}
        behind = {name: tables[name] - step * away[name] for name in tables}
        change = (lookup(ahead, mean, var) - lookup(behind, mean, var)) / (2 * step)
        found = sum(float(np.sum(np.float64(on_tables[n]) * away[n])) for n in tables)
        np.testing.assert_allclose(found, np.sum(change * weights), rtol=1e-4)
    for axis in range(3):
        offset = step * np.eye(3)[axis]
        change = lookup(tables, mean + offset, var) - lookup(tables, mean - offset, var)
        expected = np.sum(change / (2 * step) * weights, axis=1)
        np.testing.assert_allclose(on_mean[:, axis], expected, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_gradients_of_points_in_one_cell_add_up():
    table, place = jnp.zeros((8, 1)), jnp.full((1000, 3), 0.5)
    gradient = jax.jit(jax.grad(lambda t: jnp.sum(interpolate(t, place, 1))))(table)
    np.testing.assert_allclose(gradient, 125.0, rtol=1e-5)


def test_weights_at_their_limits():
    """1 for a point, a falling 1 / (sigma n sqrt(2 pi)) for a wide Gaussian, never above."""
    per_unit = 20.0
    weight = jax.jit(lambda v: hash_grid.level_weight(v, per_unit))
    var = 10.0 ** np.linspace(-14, 4, 200)[:, None]
    found = np.asarray(weight(np.float32(var)))[:, 0]
    assert found[0] == 1.0 and (np.diff(found) <= 0).all() and found[-1] < 1e-3
    wide = per_unit * np.sqrt(var[:, 0]) > 20
    expected = 1 / (np.sqrt(2 * np.pi * var[wide, 0]) * per_unit)
    np.testing.assert_allclose(found[wide], expected, rtol=1e-3)
    at_zero, slope = jax.value_and_grad(lambda v: weight(v)[0])(np.zeros(1, np.float32))
    assert at_zero == 1.0 and np.isfinite(slope).all()
    # Three variances count as their mean.
    three = weight(np.float32([0.01, 0.02, 0.06]))
    np.testing.assert_allclose(three, weight(np.float32([0.03])), rtol=1e-6)


@pytest.mark.slow
def test_as_the_variance_falls_finer_levels_come_in(params):
    mean = jnp.float32(RNG.uniform(-1, 1, size=(500, 3)))
    spread = []
    for variance in (0.05, 0.006, 1e-5):
        found = encode(params["tables"], mean, jnp.full((1, 1), variance))
        spread.append(np.std(found, axis=0).reshape(FIELD.levels, -1).mean(1))
    spread = np.array(spread)
    assert (np.diff(spread, axis=0) >= 0).all()
    # The finest grows the most.
    assert (np.diff(spread[-1] / spread[0]) > 0).all()


@pytest.mark.slow
def test_beyond_the_cube_it_is_as_at_its_border(params):
    far = np.float32([[9.0, 0.3, -0.2], [-1e6, -1e6, 1e6], [1.25, 0.3, -0.2], [-1.25, -1.25, 1.25]])
    found = apply(params, far, POINT)
    np.testing.assert_array_equal(found.log_density[:2], found.log_density[2:])
    np.testing.assert_array_equal(found.albedo[:2], found.albedo[2:])
    gradient = jax.jit(jax.grad(lambda p: apply(params, p, jnp.float32(POINT[0])).log_density))
    np.testing.assert_array_equal(gradient(jnp.float32([9.0, 9.0, -9.0])), 0.0)
    assert np.isfinite(gradient(jnp.float32([1.25, 0.0, 0.0]))).all()


@pytest.mark.slow
def test_it_is_continuous_across_cells(params):
    """Where floor jumps, the value does not."""
    edges = (np.arange(1, 24) / 24 * 2 - 1) * FIELD.extent
    point = np.stack([edges, 0 * edges + 0.01, 0 * edges - 0.3], -1)
    low, high = (
        encode(params["tables"], jnp.float32(point + [s, 0, 0]), POINT) for s in (-1e-5, 1e-5)
    )
    np.testing.assert_allclose(low, high, atol=2e-3)
    assert np.std(low, axis=0).min() > 0.1


def test_it_starts_all_but_flat():
    start = jax.jit(FIELD.init)(jax.random.key(0))
    mean = jnp.float32(RNG.uniform(-1, 1, size=(200, 3)))
    found = apply(start, mean, jnp.full((200, 1), 0.05))
    assert 0.0 < np.abs(found.log_density).max() < 1e-3
    np.testing.assert_allclose(found.albedo, 0.5, atol=1e-3)
    features = encode(start["tables"], mean, POINT)
    assert 1e-5 < np.abs(features).max() < 1e-4


@pytest.mark.slow
def test_any_batch_shape(params):
    mean = jnp.float32(RNG.uniform(-1, 1, size=(2, 3, 4, 3)))
    out = apply(params, mean, jnp.full((2, 3, 4, 1), 0.01))
    assert out.log_density.shape == (2, 3, 4) and out.albedo.shape == (2, 3, 4, 3)
    assert out.log_density.dtype == out.albedo.dtype == jnp.float32
    one = apply(params, mean[1, 2, 3], jnp.full((1,), 0.01))
    np.testing.assert_allclose(one.log_density, out.log_density[1, 2, 3], rtol=1e-5)


@pytest.mark.slow
def test_a_step_of_adam_moves_features_by_the_rate(rate=10.0):
    """Whatever the gradient: at a vertex all of a step is one entry's."""
    field = dataclasses.replace(FIELD, rate=rate, levels=1, coarsest=2, finest=2)
    place, tx = jnp.zeros((1, 3)), Adam(1e-3, eps=1e-20).make(10)

    def loss(params):
        return 1e-3 * jnp.sum(field.encode(params["tables"], place, POINT))

    @jax.jit
    def step():
        params = field.init(jax.random.key(0))
        grads = jax.grad(loss)(params)
        after, *_ = apply_gradients(tx, grads, jnp.zeros(()), params, tx.init(params))
        return [field.encode(p["tables"], place, POINT) for p in (params, after)]

    moved = step()
    np.testing.assert_allclose(moved[1] - moved[0], -1e-3 * rate, rtol=1e-3)


@pytest.mark.slow
def test_lowered_for_accelerators():
    """Value, normal and the gradient of both on the tables, at the published size."""
    field = HashGrid(levels=16, coarsest=16, finest=2048, log2_entries=19)

    def loss(params, mean, var):
        def density(mean):
            found = field(params, mean, var)
            return jnp.exp(found.log_density), found.albedo

        value, pullback, albedo = jax.vjp(density, mean, has_aux=True)
        (normal,) = pullback(jnp.ones_like(value))
        return jnp.sum(value) + jnp.sum(albedo) + jnp.sum(normal**2)

    params = jax.eval_shape(field.init, jax.random.key(0))
    mean, var = (jax.ShapeDtypeStruct((4096, n), jnp.float32) for n in (3, 1))
    program = jax.jit(jax.value_and_grad(loss))
    exported = jax.export.export(program, platforms=["tpu", "cuda"])(params, mean, var)
    assert exported.platforms == ("tpu", "cuda")
    assert "scatter" in exported.mlir_module()


def test_settings():
    assert choose(Scene(), "field", "hash_grid") == HashGrid()
    with pytest.raises(UserError, match="finest is 8: expected at least coarsest, 16"):
        HashGrid(coarsest=16, finest=8)
    with pytest.raises(UserError, match="log2_entries is 40"):
        HashGrid(log2_entries=40)
