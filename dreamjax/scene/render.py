"""Volume rendering of matter along rays (NeRF; mip-NeRF eq. 1-3; DreamFusion section 3.1).

A ray is cut into `samples` intervals between where it enters and leaves the scene's sphere, evenly
or where a coarse grid of density says that there is something to see (`scene.guide`); each has a
density, an albedo and a compositing weight w_i = T_i alpha_i. `dist` is distance along a ray in
scene units. A normal is the direction against the gradient of density, so it points outwards.

Normals are found, and light is computed, only at the `normal_samples` intervals of largest weight
on each ray. What the other intervals add to the colour is lit by the weighted mean light of these,
and what they add to the normal is the weighted mean normal; with `normal_samples = samples` every
interval has its own. On a surface a few intervals carry nearly all of the weight.
"""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dreamjax.clock import Ramp
from dreamjax.errors import UserError
from dreamjax.scene.camera import Camera
from dreamjax.scene.encoding import conical_frustum_gaussian, isotropic
from dreamjax.scene.guide import Guide, guided_density, invert, make_guide, proposal
from dreamjax.scene.matter import MatterFn
from dreamjax.scene.ranges import BothEnds
from dreamjax.scene.rays import Rays, camera_rays, intersect_sphere
from dreamjax.scene.shading import Shading, lambertian
from dreamjax.settings import Range, settings

# Of density per unit length, per unit length: below it a normal shrinks with the gradient.
SMALLEST_GRADIENT = 1e-4
# Optical thickness on the guiding grid below which a ray goes through nothing.
THIN_AIR = 1e-5
# Rays times bins of the grid that are looked through together.
RAY_BINS = 2**22
# Optical thickness of a bin of the grid that counts at most: a surface may lie some bins further.
THICKEST_BIN = 0.4


@settings
class Renderer:
    """How rays are sampled.

    With `chunk` > 0, rays go by chunks of that many, those that hit the sphere first; chunks that
    miss it are skipped, and nothing is kept for the gradient but what a chunk begins with. On a CPU
    that halves the time of a step, and the memory stays small at any size; 0 takes all rays at
    once, which suits an accelerator with memory to spare.

    With `cells` > 0, a ray's intervals are drawn from a grid of the density, so many cells a side,
    made anew at each step, and rays through nothing are skipped: 12 samples are worth 32 even ones.
    """

    samples: Annotated[int, Range(1, 1024)] = 32  # intervals of a ray inside the sphere
    normal_samples: Annotated[int, Range(1, 1024)] = 4  # of them with normals: the heaviest
    radius: Annotated[float, Range(0.01, 100.0)] = 1.0  # of the scene's sphere, in scene units
    frustum: bool = False  # Gaussians of the rays' cones in place of `variance`
    chunk: Annotated[int, Range(0, 10**6)] = 256  # rays that go at a time; 0: all
    variance: Annotated[Ramp, BothEnds(0.0, 100.0)] = Ramp(5e-2, 2e-3, (0.0, 1 / 3))
    """Isotropic variance of the Gaussians that the field sees, in squared scene units."""
    cells: Annotated[int, Range(0, 256)] = 0  # a side of the grid that guides samples; 0: even ones

    def __post_init__(self):
        """Refuse more normals than samples."""
        if self.normal_samples > self.samples:
            raise UserError(
                f"normal_samples is {self.normal_samples}: expected at most samples, {self.samples}"
            )


class Rendering(NamedTuple):
    """What is seen along each ray.

    `rgb` is shaded and over the background. `albedo` and `normal` are composited over zero, so
    their scale is that of `opacity` (a normal is shorter still where normals disagree). `depth` is
    the mean distance of what the ray meets, 0 where it meets nothing. `orientation` says how much
    of it has normals that face away from the camera (see `facing_away`), times opacity over the
    weights of the intervals that have normals: as if all had what those have on average.
    """

    rgb: Float[Array, "*batch 3"]
    albedo: Float[Array, "*batch 3"]
    normal: Float[Array, "*batch 3"]
    depth: Float[Array, "*batch"]
    opacity: Float[Array, "*batch"]
    orientation: Float[Array, "*batch"]


def interval_edges(
    near: Float[Array, "*batch"],
    far: Float[Array, "*batch"],
    samples: int,
    jitter: Float[Array, "*batch inner"] | None,
    cdf: Float[Array, "*batch bins"] | None = None,
) -> Float[Array, "*batch edges"]:
    """Ends of `samples` intervals that together cover [near, far].

    With `jitter`, uniform in [0, 1) of shape [..., samples - 1], each inner end is drawn from the
    space of one interval around its even place (stratified); without it they are even. With `cdf`
    they are so in shares of what it is the distribution of (`guide.proposal`), not of length.
    """
    inner = jnp.arange(1, samples, dtype=jnp.float32)
    inner = jnp.broadcast_to(inner, (*near.shape, samples - 1))
    if jitter is not None:
        inner = inner + jitter - 0.5
    ends = jnp.zeros((*near.shape, 1)), jnp.full((*near.shape, 1), samples, jnp.float32)
    fraction = jnp.concatenate([ends[0], inner, ends[1]], axis=-1) / samples
    if cdf is not None:
        fraction = invert(cdf, fraction)
    return near[..., None] * (1.0 - fraction) + far[..., None] * fraction


def compositing_weights(
    density: Float[Array, "*batch samples"], dist_edges: Float[Array, "*#batch edges"]
) -> tuple[Float[Array, "*batch samples"], Float[Array, "*batch"]]:
    """Weights w_i = exp(-sum_{j<i} tau_j) (1 - exp(-tau_i)), and opacity = 1 - exp(-sum tau).

    tau_i is density times length of interval i (mip-NeRF eq. 3, optical thickness).
    """
    tau = density * jnp.diff(dist_edges, axis=-1)
    before = jnp.cumsum(tau, axis=-1) - tau
    return jnp.exp(-before) * -jnp.expm1(-tau), -jnp.expm1(-jnp.sum(tau, axis=-1))


def density_normal(
    matter_fn: MatterFn, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch 3"]]:
    """Unit normals and albedo at Gaussians; where density is all but flat, the normal goes to 0."""

    def density_and_albedo(mean):
        output = matter_fn(mean, var)
        return output.density, output.albedo

    density, pullback, albedo = jax.vjp(density_and_albedo, mean, has_aux=True)
    (gradient,) = pullback(jnp.ones_like(density))
    squared = jnp.sum(gradient**2, axis=-1, keepdims=True)
    return -gradient * jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_GRADIENT**2)), albedo


def facing_away(
    weights: Float[Array, "*batch samples"],
    normal: Float[Array, "*batch samples 3"],
    direction: Float[Array, "*batch 3"],
) -> Float[Array, "*batch"]:
    """Sum of stop_gradient(w) max(0, n.v)^2: visible normals must not face away from the camera.

    `direction` is the ray's, away from the camera, so n.v > 0 is a surface seen from behind
    (Ref-NeRF eq. 11). Only the normals receive a gradient.
    """
    behind = jnp.maximum(jnp.sum(normal * direction[..., None, :], axis=-1), 0.0)
    return jnp.sum(jax.lax.stop_gradient(weights) * behind**2, axis=-1)


def render_rays(
    matter_fn: MatterFn,
    rays: Rays,
    key: Key[Array, "*lead"] | None,
    lam: float | Float[Array, ""] | None,
    shading: Shading,
    background_rgb: Float[Array, "*#batch 3"],
    renderer: Renderer,
    *,
    with_normals: bool = True,
    guide: Guide | None = None,
) -> Rendering:
    """Render a batch of rays of any shape [...].

    `shading` (and `key`, for stratified samples; None takes even ones) has no batch axes, or the
    first of the rays': rays [V, H, W] take a shading of [V] views and [V] keys, and view v then
    draws what it would draw alone. `lam` is the isotropic variance, `renderer.variance` at some
    time, not used with `renderer.frustum`. `background_rgb` broadcasts against the rays.
    `with_normals=False` shows albedo whatever the shading says, with normals and orientation zero,
    and saves their cost. With `guide` (`renderer_guide`), intervals are drawn from there.

    Raises ValueError for neither `lam` nor the frustum.
    """
    batch = rays.radius.shape
    count = rays.radius.size
    if lam is None and not renderer.frustum:
        raise ValueError("lam, the isotropic variance, is needed unless renderer.frustum is set")

    def flat(leaf, unbatched_ndim):
        lead = leaf.ndim - unbatched_ndim
        inner = leaf.shape[lead:]
        leaf = leaf.reshape(*leaf.shape[:lead], *(1,) * (len(batch) - lead), *inner)
        return jnp.broadcast_to(leaf, (*batch, *inner)).reshape(count, *inner)

    jitter = None
    if key is not None:
        shape = (*batch[key.ndim :], renderer.samples - 1)
        draw = functools.partial(jax.random.uniform, shape=shape)
        for _ in range(key.ndim):
            draw = jax.vmap(draw)
        jitter = draw(key).reshape(count, renderer.samples - 1)
    rays = Rays(*(leaf.reshape(count, *leaf.shape[len(batch) :]) for leaf in rays))
    shading = Shading(flat(shading.light_position, 1), *(flat(leaf, 0) for leaf in shading[1:]))
    near, far, hit = intersect_sphere(rays.origin, rays.direction, renderer.radius)
    dist_edges = interval_edges(near, far, renderer.samples, jitter)
    if guide is not None:
        dist_edges, there = _guided_edges(guide, rays, near, far, jitter, renderer.samples)
        hit = hit & there

    def march(args):
        return _march(matter_fn, *args, lam=lam, renderer=renderer, with_normals=with_normals)

    args = rays, dist_edges, hit, shading
    if renderer.chunk and count > renderer.chunk:
        seen = _skip_missing(march, args, hit, renderer.chunk)
    else:
        seen = march(args)
    seen = jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), seen)
    return seen._replace(rgb=seen.rgb + (1.0 - seen.opacity[..., None]) * background_rgb)


def renderer_guide(
    matter_fn: MatterFn, renderer: Renderer, lam: float | Float[Array, ""] | None
) -> Guide | None:
    """The grid that `renderer` asks for, None for even samples; `lam` as in `render_rays`."""
    if not renderer.cells:
        return None
    if lam is None:  # the variance of a uniform point in a cell
        lam = (2.0 * renderer.radius / renderer.cells) ** 2 / 12.0
    return make_guide(matter_fn, renderer.cells, renderer.radius, lam)


def _guided_edges(guide, rays, near, far, jitter, samples):
    """`interval_edges` drawn from the grid, and whether the grid has anything on the ray."""
    bins = 2 * guide.density.shape[0]

    def some(args):
        rays, near, far, jitter = args
        edges = interval_edges(near, far, bins, None)
        tau = guided_density(guide, rays, near, far, bins) * jnp.diff(edges, axis=-1)
        seen = jnp.minimum(tau, THICKEST_BIN)
        weights, _ = compositing_weights(seen, jnp.arange(bins + 1.0))
        drawn = interval_edges(near, far, samples, jitter, proposal(weights))
        return drawn, jnp.sum(tau, axis=-1) > THIN_AIR

    def one(args):
        return jax.tree.map(lambda leaf: leaf[0], some(jax.tree.map(lambda leaf: leaf[None], args)))

    args, together = (rays, near, far, jitter), max(RAY_BINS // bins, 1)
    # What is looked through together is in memory together.
    return some(args) if len(near) <= together else jax.lax.map(one, args, batch_size=together)


def _skip_missing(march, args, hit, chunk):
    """`march` by chunks of rays, those that hit first, without the chunks that have none."""
    count = hit.shape[0]
    padding = -count % chunk
    order = jnp.argsort(~hit, stable=True)
    padded = jnp.concatenate([order, jnp.broadcast_to(order[-1:], (padding,))])
    chunks = jax.tree.map(lambda leaf: leaf[padded].reshape(-1, chunk, *leaf.shape[1:]), args)
    shapes = jax.eval_shape(march, jax.tree.map(lambda leaf: leaf[0], chunks))

    def nothing(_):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step(chunk_args):
        return jax.lax.cond(jnp.any(chunk_args[2]), march, nothing, chunk_args)

    # Going through a chunk again for its gradient beats keeping every layer of every sample.
    seen = jax.lax.map(jax.checkpoint(step, prevent_cse=False), chunks)
    back = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[back], seen)


def _march(matter_fn, rays, dist_edges, hit, shading, *, lam, renderer, with_normals):
    """Render a flat batch of rays [R] over black."""
    if renderer.frustum:
        mean, var = conical_frustum_gaussian(rays, dist_edges)
    else:
        mean, var = isotropic(rays, dist_edges, lam)
    density, albedo = matter_fn(mean, var)
    density = jnp.where(hit[:, None], density, 0.0)
    weights, opacity = compositing_weights(density, dist_edges)
    albedo_seen = jnp.einsum("rs,rsc->rc", weights, albedo, precision=jax.lax.Precision.HIGHEST)
    middle = 0.5 * (dist_edges[:, :-1] + dist_edges[:, 1:])
    depth = jnp.sum(weights * middle, axis=-1) / jnp.maximum(opacity, 1e-10)
    nothing = jnp.zeros_like(opacity)
    if not with_normals:
        return Rendering(
            albedo_seen, albedo_seen, jnp.zeros_like(albedo_seen), depth, opacity, nothing
        )

    _, top = jax.lax.top_k(weights, renderer.normal_samples)
    weights = jnp.take_along_axis(weights, top, axis=1)
    mean = jnp.take_along_axis(mean, top[:, :, None], axis=1)
    var = jnp.take_along_axis(var, top[:, :, None], axis=1)
    normal, albedo = density_normal(matter_fn, mean, var)

    # Light is a multiple of the colour, so the light at a point is the colour of white there.
    lit = jax.vmap(lambertian)
    light = lit(jnp.ones_like(albedo), normal, mean, shading)
    unlit = shading._replace(ambient=jnp.ones_like(opacity), diffuse=jnp.zeros_like(opacity))
    color = lit(albedo, normal, mean, unlit)
    color_seen = jnp.where(shading.textureless[:, None] > 0.5, opacity[:, None], albedo_seen)
    top_weight = jnp.sum(weights, axis=1)
    share = weights / jnp.maximum(top_weight, 1e-10)[:, None]

    def over(weights, values):
        return jnp.einsum("rk,rkc->rc", weights, values, precision=jax.lax.Precision.HIGHEST)

    rest = color_seen - over(weights, color)
    rgb = over(weights, light * color) + rest * over(share, light)
    normal_seen = over(share, normal) * opacity[:, None]
    orientation = facing_away(share * opacity[:, None], normal, rays.direction)
    return Rendering(rgb, albedo_seen, normal_seen, depth, opacity, orientation)


def render_image(
    matter_fn: MatterFn,
    camera: Camera,
    size: int,
    lam: float | Float[Array, ""] | None,
    shading: Shading,
    background: Float[Array, "*#image 3"] | Callable[[Array], Array],
    renderer: Renderer,
    *,
    chunk: int = 4096,
    with_normals: bool = True,
) -> Rendering:
    """Render one camera's picture of `size` x `size` pixels with even samples.

    `chunk` rays go at a time: beyond the picture itself, memory does not grow with it.
    `background` is rgb that broadcasts against the picture, or a function from ray directions
    [..., 3] to rgb.
    """
    rays = camera_rays(camera, size)
    guide = renderer_guide(matter_fn, renderer, lam)
    count = size * size
    chunk = min(chunk, count)
    padding = -count % chunk

    def split(leaf):
        leaf = leaf.reshape(count, *leaf.shape[2:])
        leaf = jnp.concatenate([leaf, jnp.broadcast_to(leaf[-1:], (padding, *leaf.shape[1:]))])
        return leaf.reshape(-1, chunk, *leaf.shape[1:])

    def render_chunk(args):
        rays, behind = args
        behind = background(rays.direction) if callable(background) else behind
        return render_rays(
            matter_fn,
            rays,
            None,
            lam,
            shading,
            behind,
            renderer,
            with_normals=with_normals,
            guide=guide,
        )

    behind = None
    if not callable(background):
        behind = jnp.broadcast_to(background, (size, size, 3))
    seen = jax.lax.map(render_chunk, jax.tree.map(split, (rays, behind)))
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count].reshape(size, size, *leaf.shape[2:]),
        seen,
    )
