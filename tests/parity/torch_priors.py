"""The priors of the configs toybox and sd15 as the PyTorch step asks them."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dreamjax.priors.toybox import Toybox

from .torch_dream import TorchPrior
from .torch_unet import UNet, load_flax


def as_torch(tree) -> Any:
    """A tensor of what NumPy can read."""
    return torch.from_numpy(np.array(tree))


def toybox_prior(prior: Toybox, params, embedded) -> TorchPrior:
    """The shipped prior with our parameters and our reading of the prompt."""
    unet = load_flax(UNet(prior.net.unet), params["unet"]).eval().requires_grad_(False)
    return TorchPrior(
        encode=lambda rgb, noise: 2.0 * rgb - 1.0,
        predict=unet,
        null=(as_torch(embedded.null.tokens), as_torch(embedded.null.mask)),
        alpha_bar=as_torch(prior.schedule.alpha_bar).float(),
        prediction=prior.parameterisation.prediction,
    )


def stable_diffusion_prior(unet, vae, null, alpha_bar, prediction: str) -> TorchPrior:
    """Diffusers' UNet and autoencoder; `null` is the null text's tokens [1, L, D]."""
    size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(rgb, noise):
        if rgb.shape[-1] != size:
            rgb = F.interpolate(rgb, (size, size), mode="bilinear")
        found = vae.encode(2.0 * rgb - 1.0).latent_dist
        return vae.config.scaling_factor * (found.mean + found.std * noise)

    def predict(z_t, t, tokens, mask):
        return unet(z_t, t, tokens).sample

    vae.eval().requires_grad_(False)
    unet.eval().requires_grad_(False)
    mask = torch.ones(null.shape[:2], dtype=torch.bool)
    return TorchPrior(encode, predict, (null, mask), as_torch(alpha_bar).float(), prediction)
