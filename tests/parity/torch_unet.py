"""The shipped prior's UNet written plainly in PyTorch, under the names of ours."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from dreamjax.nets.unet import GROUP, UNetConfig


def load_flax(module: nn.Module, params: dict) -> nn.Module:
    """Give the module our parameters, by their names; each must have its place."""
    wanted = dict(module.named_parameters())

    def give(tree, path):
        for name, value in tree.items():
            if hasattr(value, "items"):
                give(value, (*path, name))
                continue
            value = torch.tensor(value.__array__())
            if name == "kernel":
                value = value.T if value.ndim == 2 else value.permute(3, 2, 0, 1)
            name = {"kernel": "weight", "scale": "weight"}.get(name, name)
            parameter = wanted.pop(".".join((*path, name)))
            parameter.data.copy_(value.reshape(parameter.shape))

    give(params, ())
    assert not wanted, wanted.keys()
    return module


def fold(x: torch.Tensor, size: int) -> torch.Tensor:
    """`space_to_depth` of [B, C, H, W]: channels are (row in the patch, column, channel)."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, size * size * c, h // size, w // size)


def unfold(x: torch.Tensor, size: int) -> torch.Tensor:
    """Undo `fold`."""
    b, c, h, w = x.shape
    x = x.view(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // size**2, h * size, w * size)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP, channels, eps=1e-5)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResBlock(nn.Module):
    """ADM's residual block."""

    def __init__(self, c: int, cond: int):
        super().__init__()
        self.film = nn.Linear(cond, 2 * c)
        self.norm_in, self.conv_in = norm(c), conv(c, c)
        self.norm_out, self.conv_out = norm(c), conv(c, c)

    def forward(self, x, cond):
        scale, shift = self.film(cond)[..., None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = F.silu(self.norm_out(h) * (1 + scale) + shift)
        return x + self.conv_out(h)


class AttentionBlock(nn.Module):
    """Attention among the places, then to the text."""

    def __init__(self, c: int, text: int, head_dim: int):
        super().__init__()
        self.heads = c // head_dim
        self.norm_self, self.norm_cross = norm(c), norm(c)
        self.self_qkv, self.self_out = nn.Conv2d(c, 3 * c, 1, bias=False), nn.Conv2d(c, c, 1)
        self.cross_q, self.cross_out = nn.Conv2d(c, c, 1, bias=False), nn.Conv2d(c, c, 1)
        self.cross_kv = nn.Linear(text, 2 * c, bias=False)

    def split(self, x):
        """[B, C, N] as [B, heads, N, C / heads]."""
        return x.view(len(x), self.heads, -1, x.shape[-1]).transpose(2, 3)

    def forward(self, x, tokens, mask):
        def joined(h):
            return h.transpose(2, 3).reshape(x.shape)

        q, k, v = map(self.split, self.self_qkv(self.norm_self(x)).flatten(2).chunk(3, dim=1))
        x = x + self.self_out(joined(F.scaled_dot_product_attention(q, k, v)))
        q = self.split(self.cross_q(self.norm_cross(x)).flatten(2))
        k, v = map(self.split, self.cross_kv(tokens).transpose(1, 2).chunk(2, dim=1))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return x + self.cross_out(joined(h))


class UNet(nn.Module):
    """Noisy pictures [B, 3, H, W], t [B] and text tokens [B, L, D] to the network's output."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels = [config.channels * mult for mult in config.channel_mults]
        lowest, width = len(channels) - 1, 4 * config.channels
        self.null_token = nn.Parameter(torch.zeros(config.text_dim))
        self.time_in = nn.Linear(config.channels, width)
        self.time_out = nn.Linear(width, width)
        self.text_pooled = nn.Linear(config.text_dim, width)
        self.conv_in = conv(3 * config.patch**2, channels[0])
        self.norm_out = norm(channels[0])
        self.conv_out = conv(channels[0], config.out_channels * config.patch**2)

        def add_blocks(name, count, level):
            for i in range(count):
                self.add_module(f"{name}_{i}", ResBlock(channels[level], width))
                if level in config.attention_levels:
                    block = AttentionBlock(channels[level], config.text_dim, config.head_dim)
                    self.add_module(f"{name}_{i}_attention", block)

        for level in range(lowest):
            here, below = channels[level], channels[level + 1]
            add_blocks(f"down_{level}", config.down_blocks[level], level)
            add_blocks(f"up_{level}", config.up_blocks[level], level)
            self.add_module(f"down_{level}", nn.Conv2d(4 * here, below, 1))
            self.add_module(f"up_{level}", nn.Conv2d(below, 4 * here, 1))
            self.add_module(f"merge_{level}", nn.Conv2d(2 * here, here, 1))
        add_blocks("middle", config.middle_blocks, lowest)

    def forward(self, x, t, tokens, mask):
        config, part = self.config, self.get_submodule
        lowest = len(config.channel_mults) - 1
        null = self.null_token.expand(len(x), 1, -1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        tokens = torch.cat([null, tokens], dim=1) * mask[..., None]
        pooled = tokens.sum(1) / mask.sum(1, keepdim=True)
        half = config.channels // 2
        angles = t[:, None] * torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        wave = torch.cat([angles.sin(), angles.cos()], dim=1)
        cond = self.time_out(F.silu(self.time_in(wave))) + self.text_pooled(pooled)
        cond = F.silu(cond)

        def blocks(h, name, count, level):
            for i in range(count):
                h = part(f"{name}_{i}")(h, cond)
                if level in config.attention_levels:
                    h = part(f"{name}_{i}_attention")(h, tokens, mask)
            return h

        h, skips = self.conv_in(fold(x, config.patch)), []
        for level in range(lowest):
            h = blocks(h, f"down_{level}", config.down_blocks[level], level)
            skips.append(h)
            h = part(f"down_{level}")(fold(h, 2))
        h = blocks(h, "middle", config.middle_blocks, lowest)
        for level in reversed(range(lowest)):
            h = unfold(part(f"up_{level}")(h), 2)
            h = part(f"merge_{level}")(torch.cat([h, skips[level]], dim=1))
            h = blocks(h, f"up_{level}", config.up_blocks[level], level)
        return unfold(self.conv_out(F.silu(self.norm_out(h))), config.patch)
