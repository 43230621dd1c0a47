"""The signed-distance field against float64 NumPy, spheres, meshes and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock
from dreamjax.config import choose, from_plain, to_plain
from dreamjax.errors import UserError
from dreamjax.scene.density import Density
from dreamjax.scene.fields import sdf
from dreamjax.scene.fields.hash_grid import HashGrid
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.fields.sdf import Sdf, log_laplace_density
from dreamjax.scene.matter import matter_fn
from dreamjax.scene.mesh_distance import read_triangles
from dreamjax.scene.render import density_normal
from dreamjax.scene.scene import Scene

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(8)
SMALL = Mlp(width=16, blocks=1, max_deg=3)
FIELD = Sdf(radius=0.6, residual=SMALL)
PLAIN = Density(bias=0.0, blob=None)
START = Clock(jnp.int32(0), 100)
apply = jax.jit(Sdf.__call__, static_argnums=0)
init = jax.jit(FIELD.init)


@functools.partial(jax.jit, static_argnums=0)
def normals(field, params, mean, var):
    return density_normal(matter_fn(field, PLAIN, params, START), mean, var)[0]


def laplace_density(distance, beta):
    """VolSDF eq. 2 and 3 in float64, with alpha = 1 / beta."""
    s = -np.float64(distance)
    with np.errstate(over="ignore"):
        psi = np.where(s <= 0, 0.5 * np.exp(s / beta), 1 - 0.5 * np.exp(-s / beta))
    return psi / beta


@pytest.mark.parametrize("beta", [0.001, 0.02, 0.3])
def test_density_against_numpy(beta):
    distance = np.concatenate([np.linspace(-10, 10, 401) * beta, [-5.0, 0.0, 80 * beta]])
    found = log_laplace_density(jnp.float32(distance), jnp.float32(beta))
    np.testing.assert_allclose(np.exp(found), laplace_density(distance, beta), rtol=1e-4)


def test_density_far_away_and_its_slopes():
    """Nothing is infinite, and the slope has no jump at the surface."""
    slope = jax.jit(jax.vmap(jax.grad(lambda d: log_laplace_density(d, jnp.float32(0.001)))))
    distance = jnp.float32([-100.0, -1e-6, 0.0, 1e-6, 100.0])
    found = np.asarray(slope(distance))
    np.testing.assert_allclose(found[1:], -1000.0, rtol=5e-3)
    assert found[0] == 0.0
    assert np.isfinite(log_laplace_density(distance, jnp.float32(0.001))).all()


@pytest.mark.slow
def test_a_gaussian_softens_the_surface_as_much_as_it_would_a_wall():
    """The distribution function has the deviation of the Gaussian that the wall is seen through."""
    field = Sdf(radius=100.0, beta=1e-3, residual=SMALL)
    params = jax.tree.map(np.zeros_like, init(jax.random.key(0)))  # nothing is learnt yet
    distance, sigma = np.linspace(-3, 3, 6001), 0.2
    mean = jnp.float32(np.stack([100 + distance, 0 * distance, 0 * distance], -1))
    found = apply(field, params, mean, jnp.full((1, 1), sigma**2)).log_density
    density = np.exp(np.float64(found))
    spread = -np.diff(density) / (density[0] - density[-1])
    middle = 0.5 * (distance[1:] + distance[:-1])
    assert np.sum(spread * middle) == pytest.approx(0.0, abs=1e-3)
    assert np.sqrt(np.sum(spread * middle**2)) == pytest.approx(sigma, rel=5e-3)


def test_it_starts_as_a_sphere():
    params = init(jax.random.key(2))
    direction = RNG.normal(size=(300, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = RNG.uniform(0.05, 1.1, size=300)
    mean, var = jnp.float32(direction * radius[:, None]), jnp.full((300, 1), 1e-3)
    found = apply(FIELD, params, mean, var)
    beta = np.sqrt(FIELD.beta**2 + 0.5e-3)
    # What the network adds moves the surface by less than 0.05.
    low, high = (np.log(laplace_density(radius - 0.6 + s * 0.05, beta)) for s in (1, -1))
    assert ((low <= found.log_density) & (found.log_density <= high)).all()
    np.testing.assert_allclose(found.albedo, 0.5, atol=0.1)
    normal, near = normals(FIELD, params, mean, var), np.abs(radius - 0.6) < 0.2
    assert (np.sum(normal * direction, axis=1)[near] > 0.98).all()
    assert np.isfinite(normals(FIELD, params, jnp.zeros((300, 3)), var)).all()


@pytest.mark.slow
def test_what_is_learnt_moves_the_surface():
    """One unit more of the other field's log density is a tenth of a unit of distance."""
    params = init(jax.random.key(0))
    head = params["residual"]["head"]
    moved = params | {
        "residual": params["residual"]
        | {"head": head | {"bias": head["bias"] - jnp.array([1.0, 0, 0, 0])}}
    }
    var = jnp.full((1, 1), 1e-2)
    x = jnp.float32([[0.7, 0.0, 0.0]])
    before, after = (
        apply(FIELD, params, x, var),
        apply(FIELD, moved, x + np.float32([0.1, 0, 0]), var),
    )
    np.testing.assert_allclose(before.log_density, after.log_density, atol=0.3)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(FIELD(p, x, var).log_density)))(params)
    assert np.abs(gradient["residual"]["head"]["bias"][0]) > 1.0


@pytest.mark.slow
def test_the_other_field_may_be_a_hash_grid():
    args = Scene(field=choose(Scene(), "field", "sdf"))
    assert args.field == Sdf() and choose(args, "field.residual", "hash_grid") == HashGrid()
    field = Sdf(residual=HashGrid(levels=2))
    params = jax.jit(field.init)(jax.random.key(0))
    x = jnp.float32(RNG.uniform(-1, 1, size=(2, 5, 3)))
    found = apply(field, params, x, jnp.full((1, 1, 3), 0.01))
    assert found.log_density.shape == (2, 5) and found.albedo.shape == (2, 5, 3)
    assert from_plain(to_plain(field)) == field


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    trimesh = pytest.importorskip("trimesh")
    path = tmp_path_factory.mktemp("meshes") / "box.obj"
    trimesh.creation.box((1.0, 2.0, 1.5)).export(path)
    return path


@pytest.fixture(scope="module")
def from_box(box):
    field = Sdf(from_mesh=str(box), mesh_radius=0.8, residual=SMALL)
    return field, field.init(jax.random.key(0))


@pytest.mark.slow
def test_a_mesh_against_trimesh(box, from_box):
    """On random points, in the cube and beside it."""
    import trimesh

    field, params = from_box
    triangles = read_triangles(box, 0.8)
    mesh = trimesh.Trimesh(triangles.reshape(-1, 3), np.arange(len(triangles) * 3).reshape(-1, 3))
    point = RNG.uniform(-0.88, 0.88, size=(200, 3))
    _, distance, _ = trimesh.proximity.closest_point_naive(mesh, point)
    half = triangles.reshape(-1, 3).max(0)
    inside = (np.abs(point) < half).all(1)
    assert 20 < inside.sum() < 180
    start = jax.jit(field.start)
    found = start(params, jnp.float32(point))
    # A lattice's cell is 0.028 wide; edges are rounded within one.
    np.testing.assert_allclose(found, np.where(inside, -distance, distance), atol=0.01)
    far = RNG.uniform(0.9, 3.0, size=(50, 3)) * RNG.choice([-1, 1], size=(50, 3))
    _, distance, _ = trimesh.proximity.closest_point_naive(mesh, far)
    found = np.asarray(start(params, jnp.float32(far)))
    assert (found > distance - 0.01).all() and (found < 1.5 * distance).all()


@pytest.mark.slow
def test_normals_of_a_mesh(from_box):
    field, params = from_box
    half = 0.8 * np.array([1.5, 1.0, 2.0]) / np.linalg.norm([1.5, 1.0, 2.0])
    place = np.float32([[half[0], 0.05, 0.1], [0.03, -half[1], 0.07], [-0.03, 0.04, half[2]]])
    normal = normals(field, params, place, jnp.full((1, 1), 1e-3))
    np.testing.assert_allclose(normal, [[1, 0, 0], [0, -1, 0], [0, 0, 1]], atol=0.08)


@pytest.mark.slow
def test_a_mesh_is_not_learnt_and_its_shape_needs_no_file(from_box):
    field, params = from_box
    x, var = jnp.float32(RNG.uniform(-1, 1, size=(20, 3))), jnp.full((1, 1), 1e-2)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(field(p, x, var).log_density)))(params)
    np.testing.assert_array_equal(gradient["start"], 0.0)
    gone = Sdf(from_mesh="/nowhere/bunny.obj", residual=SMALL)
    shapes = jax.eval_shape(gone.init, jax.random.key(0))
    assert shapes["start"].shape == params["start"].shape == (sdf.POINTS**3, 1)
    with pytest.raises(UserError, match="there is no mesh file /nowhere/bunny.obj"):
        gone.init(jax.random.key(0))
    jitted = jax.jit(field.init)(jax.random.key(0))
    np.testing.assert_array_equal(jitted["start"], params["start"])


@pytest.mark.slow
def test_lowered_for_accelerators(from_box):
    field, params = from_box

    def loss(params, mean, var):
        found = field(params, mean, var)
        return jnp.sum(jnp.exp(found.log_density)) + jnp.sum(found.albedo)

    mean, var = (jax.ShapeDtypeStruct((4096, n), jnp.float32) for n in (3, 1))
    program = jax.jit(jax.grad(loss))
    exported = jax.export.export(program, platforms=["tpu", "cuda"])(params, mean, var)
    assert exported.platforms == ("tpu", "cuda")
