"""The published ADM networks in PyTorch, as the reference that ours is compared with.

The modules nest so that the state dict has the published names, and the arguments are the published
ones; `attention_resolutions` are factors of shrinking, not sides. Images are [B, C, H, W].
"""

import math

import torch
from torch import nn
from torch.nn import functional


def timestep_embedding(t, dim):
    """Cosines, then sines, of t at dim / 2 frequencies from 1 towards 1e-4."""
    rates = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels):
    return nn.GroupNorm(32, channels)


class Sequence(nn.Sequential):
    """Layers in a row, of which residual blocks also see the conditioning."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """`resize` is what happens between the first norm and the first convolution, and to x."""

    def __init__(self, channels, out_channels, emb_channels, scale_shift, resize=None):
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        width = 2 * out_channels if scale_shift else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        self.out_layers = nn.Sequential(
            norm(out_channels),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        h = self.in_layers[:-1](x)
        if self.resize:
            h, x = self.resize(h), self.resize(x)
        h = self.in_layers[-1](h)
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


def attend(qkv, heads, qkv_first):
    """Attention [B, C, L] of [B, 3C, L], whose channels are (qkv, head, c) or (head, qkv, c)."""
    b, width, length = qkv.shape
    c = width // 3 // heads
    if qkv_first:
        q, k, v = qkv.reshape(b, 3, heads, c, length).unbind(1)
    else:
        q, k, v = qkv.reshape(b, heads, 3, c, length).unbind(2)
    weights = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(c), dim=-1)
    return torch.einsum("bhts,bhcs->bhct", weights, v).reshape(b, width // 3, length)


class AttentionBlock(nn.Module):
    def __init__(self, channels, heads, qkv_first):
        super().__init__()
        self.heads, self.qkv_first = heads, qkv_first
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        flat = x.flatten(2)
        h = attend(self.qkv(self.norm(flat)), self.heads, self.qkv_first)
        return (flat + self.proj_out(h)).reshape(x.shape)


class AttentionPool2d(nn.Module):
    """The mean of all places as a first token, attention among all, and its output for the first.

    Its q, k and v always come before the heads, whatever the order elsewhere.
    """

    def __init__(self, side, channels, head_channels, out_channels):
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.empty(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x):
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), self.heads, qkv_first=True))[:, :, 0]


def halve(x):
    return functional.avg_pool2d(x, 2)


def double(x):
    return functional.interpolate(x, scale_factor=2, mode="nearest")


class Encoder(nn.Module):
    """What both networks have: the conditioning, the way down and the middle."""

    def __init__(
        self,
        *,
        in_channels,
        model_channels,
        channel_mult,
        num_res_blocks,
        attention_resolutions,
        num_heads,
        num_head_channels,
        use_new_attention_order,
        resblock_updown,
        use_scale_shift_norm,
    ):
        super().__init__()
        self.model_channels = model_channels
        emb = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )

        def block(channels, out_channels, resize=None):
            return ResBlock(channels, out_channels, emb, use_scale_shift_norm, resize)

        def attention(channels):
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            return AttentionBlock(channels, heads, use_new_attention_order)

        self.block, self.attention = block, attention
        c = channel_mult[0] * model_channels
        places = [Sequence(nn.Conv2d(in_channels, c, 3, padding=1))]
        self.skips, shrunk = [c], 1
        for level, mult in enumerate(channel_mult):
            if level:
                places.append(Sequence(block(c, c, halve) if resblock_updown else Downsample(c)))
                self.skips.append(c)
                shrunk *= 2
            for _ in range(num_res_blocks):
                layers = [block(c, mult * model_channels)]
                c = mult * model_channels
                if shrunk in attention_resolutions:
                    layers.append(attention(c))
                places.append(Sequence(*layers))
                self.skips.append(c)
        self.input_blocks = nn.ModuleList(places)
        self.middle_block = Sequence(block(c, c), attention(c), block(c, c))
        self.channels, self.shrunk = c, shrunk

    def embed(self, t):
        emb = timestep_embedding(t, self.model_channels)
        return self.time_embed(emb.to(self.time_embed[0].weight.dtype))

    def encode(self, x, emb):
        """The middle's output, and those of every place on the way down."""
        hs = []
        for place in self.input_blocks:
            x = place(x, emb)
            hs.append(x)
        return self.middle_block(x, emb), hs


class UNetModel(Encoder):
    def __init__(self, *, out_channels, num_classes=None, **encoder):
        super().__init__(**encoder)
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, 4 * self.model_channels)
        c, shrunk, skips, places = self.channels, self.shrunk, list(self.skips), []
        for level, mult in reversed(list(enumerate(encoder["channel_mult"]))):
            for i in range(encoder["num_res_blocks"] + 1):
                layers = [self.block(c + skips.pop(), mult * self.model_channels)]
                c = mult * self.model_channels
                if shrunk in encoder["attention_resolutions"]:
                    layers.append(self.attention(c))
                if level and i == encoder["num_res_blocks"]:
                    bigger = self.block(c, c, double) if encoder["resblock_updown"] else Upsample(c)
                    layers.append(bigger)
                    shrunk //= 2
                places.append(Sequence(*layers))
        self.output_blocks = nn.ModuleList(places)
        self.out = nn.Sequential(norm(c), nn.SiLU(), nn.Conv2d(c, out_channels, 3, padding=1))

    def forward(self, x, t, label=None):
        emb = self.embed(t)
        if label is not None:
            emb = emb + self.label_emb(label)
        h, hs = self.encode(x, emb)
        for place in self.output_blocks:
            h = place(torch.cat([h, hs.pop()], dim=1), emb)
        return self.out(h)


class EncoderUNetModel(Encoder):
    """The classifier with attention pooling."""

    def __init__(self, *, image_size, out_channels, **encoder):
        super().__init__(**encoder)
        side, c = image_size // self.shrunk, self.channels
        pool = AttentionPool2d(side, c, encoder["num_head_channels"], out_channels)
        self.out = nn.Sequential(norm(c), nn.SiLU(), pool)

    def forward(self, x, t):
        emb = self.embed(t)
        return self.out(self.encode(x, emb)[0])
