"""PyTorch networks with every weight random, what they answer in float64, and how near is near."""

import numpy as np
import torch

NORMS = (torch.nn.GroupNorm, torch.nn.LayerNorm)
# What starts a residual stream or adds to it.
ADDED = ("conv_in", "conv2", "proj_in", "to_out.0", "net.2")
FAINT = 0.02


def randomised(module):
    """The module with random weights, none left at 0 or 1, so that none is left out unseen.

    Matrices have PyTorch's initial size, but for those that make the residual streams: small, so
    that the epsilons of the norms that read them show.
    """
    rng = torch.Generator().manual_seed(0)
    norms = {name for name, part in module.named_modules() if isinstance(part, NORMS)}
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.normal_(generator=rng)
            layer, kind = name.rsplit(".", 1)
            if layer in norms:
                value.mul_(0.2).add_(kind == "weight")
            elif kind == "bias":
                value *= 0.2 * FAINT
            else:
                size = FAINT if layer.endswith(ADDED) else 1.0
                value *= size / (3 * value[0].numel()) ** 0.5
    return module.eval()


def nchw(x):
    """An image batch [B, H, W, C] as a float64 tensor [B, C, H, W]."""
    return torch.from_numpy(np.asarray(x)).double().permute(0, 3, 1, 2)


def nhwc(x):
    """Undo `nchw`."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def agree(got, wanted, dtype):
    """Whether the largest error, relative to the largest value, is what `dtype` rounds away."""
    assert got.shape == wanted.shape and got.dtype == np.float32
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    print(f"relative error {error:.1e}")
    return error < {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}[dtype]
