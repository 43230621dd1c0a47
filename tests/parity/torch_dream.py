"""The step of a dream written plainly in PyTorch: what ours is compared with, in value and speed.

Eager and in float32, all rays that hit anything at once. It has the parts that the configs toybox
and sd15 have: the MLP, the guiding grid, backdrops or a learnt background, light, four penalties,
score distillation by a prior, Adam. What a step draws comes in as a `Shot`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamjax.clock import Clock
from dreamjax.distill.step import Phase
from dreamjax.scene.backgrounds.learned import DEGREES, Learned
from dreamjax.scene.guide import PADDING
from dreamjax.scene.render import SMALLEST_GRADIENT, THICKEST_BIN, THIN_AIR
from dreamjax.tasks.dream import Dream


class Shot(NamedTuple):
    """What a step draws for V views of S x S pixels; B = V times the draws of the objective."""

    position: Tensor  # [V, 3] of the cameras
    rotation: Tensor  # [V, 3, 3]
    focal: Tensor  # [V]
    light: Tensor  # [V, 3], its position
    ambient: Tensor  # [V]
    diffuse: Tensor  # [V]
    textureless: Tensor  # [V]
    jitter: Tensor  # [V, S, S, samples - 1]
    backdrop: Tensor  # [V, 2, 3], colours at the bottom and at the top; not used by a learnt one
    tokens: Tensor  # [V, L, D], the text of each view
    mask: Tensor  # [V, L]
    latent_noise: Tensor  # [V, c, h, w], the encoder's
    t: Tensor  # [B]
    eps: Tensor  # [B, c, h, w]


class TorchPrior(NamedTuple):
    """The frozen prior: how pictures [V, 3, S, S] in [0, 1] become z_0, and what is said of noise.

    `encode(rgb, noise)`, `predict(z_t, t, tokens, mask)`; `null` are the null text's tokens and
    mask; `prediction` is "v" or "eps".
    """

    encode: Callable
    predict: Callable
    null: tuple[Tensor, Tensor]
    alpha_bar: Tensor
    prediction: str


def draw_shot(
    task: Dream, phase: Phase, texts: tuple[Tensor, Tensor], prior: TorchPrior, shape, step: int
) -> Shot:
    """Draw a step of the config; a view's text is any of `texts`, z_0 has `shape` [c, h, w]."""
    views, draws, cameras = task.batch_views, task.objective.draws, task.cameras

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(views)

    azimuth, low, high = uniform(-torch.pi, torch.pi), *np.deg2rad(cameras.elevation)
    by_area = uniform(np.sin(low), np.sin(high)).asin()
    elevation = torch.where(torch.rand(views) < cameras.area_uniform, by_area, uniform(low, high))
    flat = elevation.cos()
    toward = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), elevation.sin()], dim=-1)
    jitter = cameras.jitter_position * (2.0 * torch.rand(views, 3) - 1.0)
    position = uniform(*cameras.distance)[:, None] * toward + jitter
    up = torch.tensor([0.0, 0.0, 1.0]) + cameras.jitter_up * torch.randn(views, 3)
    back = F.normalize(position - cameras.jitter_look_at * torch.randn(views, 3), dim=-1)
    right = F.normalize(torch.linalg.cross(up, back), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(back, right), back], dim=-1)
    light = F.normalize(position, dim=-1) + task.light.spread * torch.randn(views, 3)
    light = uniform(*task.light.distance)[:, None] * F.normalize(light, dim=-1)
    shaded = torch.rand(views) < task.light.shaded
    name = torch.randint(len(texts[0]), (views,))
    clock, total = Clock(step, task.steps), len(prior.alpha_bar)
    first, last = float(task.objective.t_low(clock)), float(task.objective.t_high(clock))
    place = (torch.arange(draws) + torch.rand(views, draws)) / draws
    t = (total * (first + place * (last - first))).long().clamp(0, total - 1).flatten()
    return Shot(
        position,
        rotation,
        uniform(*cameras.focal),
        light,
        torch.where(shaded, task.light.ambient, 1.0),
        torch.where(shaded, task.light.diffuse, 0.0),
        (shaded & (torch.rand(views) < task.light.textureless)).float(),
        torch.rand(views, phase.size, phase.size, task.renderer.samples - 1),
        torch.rand(views, 2, 3),
        texts[0][name],
        texts[1][name],
        torch.randn(views, *shape),
        t,
        torch.randn(views * draws, *shape),
    )


def positional_encoding(mean: Tensor, var: Tensor | float, low: int, high: int) -> Tensor:
    """Mip-NeRF eq. 13-14, degree-major, sines then cosines."""
    scale = 2.0 ** torch.arange(low, high)[:, None]
    decay = torch.exp(-0.5 * scale**2 * var)
    x = mean[..., None, :] * scale
    return torch.cat([(x.sin() * decay).flatten(-2), (x.cos() * decay).flatten(-2)], dim=-1)


class FieldNet(nn.Module):
    """The residual MLP."""

    def __init__(self, field: Any):
        super().__init__()
        self.field, width = field, field.width
        self.stem = nn.Linear(6 * (field.max_deg - field.min_deg), width)
        for i in range(field.blocks):
            self.add_module(f"block_{i}_in", nn.Linear(width, width))
            self.add_module(f"block_{i}_out", nn.Linear(width, width))
        self.head = nn.Linear(width, 4)

    def forward(self, mean: Tensor, var: Tensor | float) -> tuple[Tensor, Tensor]:
        field = self.field
        x = F.silu(self.stem(positional_encoding(mean, var, field.min_deg, field.max_deg)))
        for i in range(field.blocks):
            y = F.silu(self.get_submodule(f"block_{i}_in")(x))
            x = x + self.get_submodule(f"block_{i}_out")(y)
            x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        out = self.head(x)
        return out[..., 0], out[..., 1:].sigmoid()


class BackgroundNet(nn.Module):
    """The learnt colour of every direction; its layers have Flax's names."""

    def __init__(self, learned: Learned):
        super().__init__()
        sizes = [6 * DEGREES, *[learned.width] * learned.depth, 3]
        self.depth = learned.depth
        for i in range(learned.depth + 1):
            self.add_module(f"Dense_{i}", nn.Linear(sizes[i], sizes[i + 1]))

    def forward(self, direction: Tensor) -> Tensor:
        x = positional_encoding(direction, 0.0, 0, DEGREES)
        for i in range(self.depth):
            x = F.silu(self.get_submodule(f"Dense_{i}")(x))
        return self.get_submodule(f"Dense_{self.depth}")(x).sigmoid()


def matter(task: Dream, net: FieldNet, mean: Tensor, var: float, clock: Clock):
    """Density and albedo at Gaussians."""
    log_density, albedo = net(mean, var)
    given = task.density
    if given.blob is not None:
        squared = (mean**2).sum(-1)
        log_density = log_density + given.blob.strength * torch.exp(
            -0.5 * squared / given.blob.width**2
        )
    log_density = log_density + given.bias
    if given.contrast is not None:
        level, power = float(np.log(given.contrast.pivot)), float(given.contrast.power(clock))
        log_density = level + power * (log_density - level)
    # The derivative above the bound is the value there, not 0.
    bounded = log_density + (log_density.clamp(max=12.0) - log_density).detach()
    return torch.exp(bounded), albedo


def weights_of(density: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Compositing weights and opacity."""
    tau = density * (edges[..., 1:] - edges[..., :-1])
    before = tau.cumsum(-1) - tau
    return torch.exp(-before) * -torch.expm1(-tau), -torch.expm1(-tau.sum(-1))


def camera_rays(shot: Shot, size: int) -> tuple[Tensor, Tensor]:
    """Origins and directions [V, S, S, 3]."""
    offset = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(-offset, offset, indexing="ij")
    z = -shot.focal[:, None, None].expand(-1, size, size)
    local = torch.stack([x.expand_as(z), y.expand_as(z), z], dim=-1)
    local = local / local.norm(dim=-1, keepdim=True)
    direction = torch.einsum("vij,vhwj->vhwi", shot.rotation, local)
    return shot.position[:, None, None].expand_as(direction), direction


def through_sphere(origin: Tensor, direction: Tensor, radius: float):
    """Where rays [R, 3] enter and leave the sphere, and whether they do."""
    closest = -(origin * direction).sum(-1)
    off_axis = origin + closest[:, None] * direction
    half_squared = radius**2 - (off_axis**2).sum(-1)
    half = half_squared.clamp(min=0.0).sqrt()
    near, far = (closest - half).clamp(min=0.0), (closest + half).clamp(min=0.0)
    return near, far, (half_squared > 0.0) & (far > 0.0)


@torch.no_grad()
def make_grid(task: Dream, net: FieldNet, var: float, clock: Clock) -> Tensor:
    """Density at the cells of the cube around the sphere, 0 outside it."""
    cells, radius = task.renderer.cells, task.renderer.radius
    middle = radius * (2.0 * torch.arange(cells) + 1.0 - cells) / cells
    points = torch.stack(torch.meshgrid(middle, middle, middle, indexing="ij"), -1).view(-1, 3)
    inside = points.norm(dim=-1) < radius * (1.0 + 3.0**0.5 / cells)
    grid = torch.zeros(cells**3)
    grid[inside] = matter(task, net, points[inside], var, clock)[0]
    return grid


@torch.no_grad()
def propose(task: Dream, grid: Tensor, origin: Tensor, direction: Tensor, near, far):
    """The distribution to draw intervals from, and the optical thickness, of each ray."""
    cells, bins = task.renderer.cells, 2 * task.renderer.cells
    share = (torch.arange(bins) + 0.5) / bins
    dist = near[:, None] + (far - near)[:, None] * share
    point = origin[:, None] + dist[..., None] * direction[:, None]
    place = ((point / task.renderer.radius + 1.0) * (0.5 * cells)).floor().long()
    x, y, z = place.clamp(0, cells - 1).unbind(-1)
    tau = grid[(x * cells + y) * cells + z] * ((far - near) / bins)[:, None]
    weights, _ = weights_of(tau.clamp(max=THICKEST_BIN), torch.arange(bins + 1.0))
    beside = torch.cat([weights[:, :1], weights, weights[:, -1:]], dim=1)
    pairs = torch.maximum(beside[:, :-1], beside[:, 1:])
    mass = 0.5 * (pairs[:, :-1] + pairs[:, 1:]) + PADDING / bins
    cdf = mass.cumsum(1)
    return F.pad(cdf / cdf[:, -1:], (1, 0)), tau.sum(-1)


def interval_edges(near: Tensor, far: Tensor, jitter: Tensor, cdf: Tensor | None) -> Tensor:
    """Ends of the intervals of rays."""
    samples = jitter.shape[1] + 1
    inner = (torch.arange(1, samples) + jitter - 0.5) / samples
    level = torch.cat([torch.zeros(len(near), 1), inner, torch.ones(len(near), 1)], dim=1)
    if cdf is not None:
        bins = cdf.shape[1] - 1
        number = torch.searchsorted(cdf[:, 1:-1].contiguous(), level.contiguous(), right=True)
        low, high = cdf.gather(1, number), cdf.gather(1, number + 1)
        level = (number + (level - low) / (high - low)) / bins
    return near[:, None] * (1.0 - level) + far[:, None] * level


def shade(task, net, var, clock, mean, weights, opacity, albedo_seen, direction, shot):
    """Rgb, normal and orientation of rays, from the heaviest samples' normals."""
    weights, top = weights.topk(task.renderer.normal_samples, dim=1)
    mean = mean.gather(1, top[..., None].expand(-1, -1, 3)).detach().requires_grad_()
    density, albedo = matter(task, net, mean, var, clock)
    (gradient,) = torch.autograd.grad(density.sum(), mean, create_graph=True)
    squared = (gradient**2).sum(-1, keepdim=True)
    normal = -gradient * squared.clamp(min=SMALLEST_GRADIENT**2).rsqrt()

    light, ambient, diffuse, textureless = shot
    to_light = light[:, None] - mean
    to_light = to_light / to_light.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    cosine = (normal * to_light).sum(-1, keepdim=True).clamp(min=0.0)
    lit = ambient[:, None, None] + diffuse[:, None, None] * cosine
    white = textureless[:, None] > 0.5
    color = torch.where(white[..., None], torch.ones(()), albedo)
    color_seen = torch.where(white, opacity[:, None], albedo_seen)
    share = weights / weights.sum(1).clamp(min=1e-10)[:, None]
    rest = color_seen - (weights[..., None] * color).sum(1)
    mean_light = (share[..., None] * lit).sum(1)
    rgb = (weights[..., None] * lit * color).sum(1) + rest * mean_light
    normal_seen = (share[..., None] * normal).sum(1) * opacity[:, None]
    behind = (normal * direction[:, None]).sum(-1).clamp(min=0.0)
    away = ((share * opacity[:, None]).detach() * behind**2).sum(1)
    return rgb, normal_seen, away


def render(task: Dream, phase: Phase, nets: nn.ModuleDict, shot: Shot, clock: Clock):
    """Rgb and normals [V, S, S, 3], opacity and orientation [V, S, S], and the rays' directions."""
    size, views, net = phase.size, len(shot.focal), nets["field"]
    var = float(task.renderer.variance(clock))
    origins, directions = camera_rays(shot, size)
    origin, direction = origins.reshape(-1, 3), directions.reshape(-1, 3)
    near, far, hit = through_sphere(origin, direction, task.renderer.radius)
    cdf = None
    if task.renderer.cells:
        grid = make_grid(task, net, var, clock)
        cdf, thickness = propose(task, grid, origin, direction, near, far)
        hit = hit & (thickness > THIN_AIR)
    view = torch.arange(views).repeat_interleave(size * size)[hit]
    origin, direction, near, far = (x[hit] for x in (origin, direction, near, far))
    jitter = shot.jitter.reshape(len(hit), -1)[hit]
    edges = interval_edges(near, far, jitter, None if cdf is None else cdf[hit])
    dist = 0.5 * (edges[:, :-1] + edges[:, 1:])
    mean = origin[:, None] + dist[..., None] * direction[:, None]
    density, albedo = matter(task, net, mean, var, clock)
    weights, opacity = weights_of(density, edges)
    rgb = (weights[..., None] * albedo).sum(1)
    normal, away = torch.zeros_like(rgb), torch.zeros_like(opacity)
    if phase.lit:
        light = [x[view] for x in (shot.light, shot.ambient, shot.diffuse, shot.textureless)]
        rgb, normal, away = shade(
            task, net, var, clock, mean, weights, opacity, rgb, direction, light
        )

    def picture(values: Tensor) -> Tensor:
        whole = torch.zeros(len(hit), *values.shape[1:])
        whole[hit] = values
        return whole.view(views, size, size, *values.shape[1:])

    return *map(picture, (rgb, normal, opacity, away)), directions


def before_background(task: Dream, nets: nn.ModuleDict, shot: Shot, rgb, opacity, directions):
    """The pictures before what is behind them."""
    if isinstance(task.background, Learned):
        behind = nets["background"](directions)
    else:
        size = rgb.shape[1]
        height = 1.0 - (torch.arange(size) + 0.5)[:, None, None] / size
        bottom, top = shot.backdrop[:, 0, None, None], shot.backdrop[:, 1, None, None]
        behind = bottom + height * (top - bottom)
    return rgb + (1.0 - opacity[..., None]) * behind


def penalties(task: Dream, phase: Phase, normal, opacity, away, clock: Clock) -> Tensor:
    """The weighted sum of those that the configs have."""

    def orientation():
        hit = (opacity > 0.0).sum((1, 2))
        return away.sum((1, 2)) / hit.clamp(min=1)

    def opaque():
        return (opacity**2 + 0.01).sqrt().mean((1, 2))

    def entropy():
        o = opacity.clamp(1e-3, 1.0 - 1e-3)
        return (-o * o.log() - (1.0 - o) * torch.log1p(-o)).mean((1, 2))

    def smoothness():
        def along(n, o):
            step = ((n[:, 1:] - n[:, :-1]) ** 2).sum(-1)
            return ((o[:, 1:] * o[:, :-1]).detach() * (step + 1e-4).sqrt()).sum((1, 2))

        across = along(normal.transpose(1, 2), opacity.transpose(1, 2))
        return (along(normal, opacity) + across) / opacity.shape[-1]

    values = {
        "Orientation": orientation, "Opacity": opaque, "Entropy": entropy, "Smoothness": smoothness,
    }  # fmt: skip
    total = torch.zeros(())
    for penalty in task.penalties:
        if phase.lit or not penalty.needs_normals:
            value = values[type(penalty).__name__]().mean()
            total = total + float(penalty.weight(clock)) * value
    return total


def distil(task: Dream, prior: TorchPrior, rgb: Tensor, shot: Shot) -> Tensor:
    """What has the gradient of score distillation: a mean over views and draws."""
    draws, objective = task.objective.draws, task.objective
    z_0 = prior.encode(rgb.permute(0, 3, 1, 2), shot.latent_noise)
    with torch.no_grad():
        alpha_bar = prior.alpha_bar[shot.t][:, None, None, None]
        signal, sigma = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
        z_t = signal * z_0.repeat_interleave(draws, 0) + sigma * shot.eps
        tokens, mask = (x.repeat_interleave(draws, 0) for x in (shot.tokens, shot.mask))
        null = [x.expand(len(z_t), *x.shape[1:]) for x in prior.null]
        given = torch.cat([tokens, null[0]]), torch.cat([mask, null[1]])
        output = prior.predict(torch.cat([z_t, z_t]), torch.cat([shot.t, shot.t]), *given)
        if prior.prediction == "v":
            output = signal.repeat(2, 1, 1, 1) * output + torch.cat([sigma * z_t] * 2)
        cond, uncond = output.chunk(2)
        eps_hat = uncond + objective.guidance_scale * (cond - uncond)
        residual = (1.0 - alpha_bar) * (eps_hat - shot.eps)
        residual = residual.view(len(z_0), draws, *z_0.shape[1:]).mean(1)
    return (residual * z_0).sum() / len(z_0)


def step_loss(task: Dream, phase: Phase, nets, prior: TorchPrior, shot: Shot, step: int) -> Tensor:
    """The loss of a step, whose gradient moves the scene."""
    clock = Clock(step, task.steps)
    rgb, normal, opacity, away, directions = render(task, phase, nets, shot, clock)
    rgb = before_background(task, nets, shot, rgb, opacity, directions)
    penalty = penalties(task, phase, normal, opacity, away, clock)
    return distil(task, prior, rgb, shot) + penalty


def make_nets(task: Dream) -> nn.ModuleDict:
    """What is trained: the field, and the background where it is learnt."""
    nets: dict[str, nn.Module] = {"field": FieldNet(task.field)}
    if isinstance(task.background, Learned):
        nets["background"] = BackgroundNet(task.background)
    return nn.ModuleDict(nets)


def make_adam(task: Dream, nets: nn.ModuleDict) -> torch.optim.Adam:
    """The optimizer of the config; its rate is set before each step."""
    adam = task.optimizer
    return torch.optim.Adam(nets.parameters(), betas=(adam.b1, adam.b2), eps=adam.eps)


def take_step(task, phase, nets, adam, rates, prior, shot: Shot, step: int) -> Tensor:
    """One step of the scene; `rates` are the learning rates of all steps."""
    adam.zero_grad()
    loss = step_loss(task, phase, nets, prior, shot, step)
    loss.backward()
    for group in adam.param_groups:
        group["lr"] = rates[step]
    adam.step()
    return loss.detach()
