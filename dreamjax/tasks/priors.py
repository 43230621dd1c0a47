"""The prior that a config's `weights` name."""

import dataclasses
from pathlib import Path

from jaxtyping import PyTree

from dreamjax.priors import classes, stable_diffusion, toybox
from dreamjax.weights import format_of


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How a published model runs; files of our own say it themselves.

    `dtype` is that of the networks' activations; with `remat` gradients recompute them, and `fused`
    is cuDNN's attention (NVIDIA GPUs, half precision).
    """

    dtype: str = "float32"
    remat: bool = False
    fused: bool = False


def load_prior(weights: str, config: PriorConfig = PriorConfig()) -> tuple[object, PyTree]:
    """A prior with its parameters.

    "" is the one that ships; a file is one of `train_prior` or `train_diffusion`; a folder or a
    repository id is a Stable Diffusion in the layout of diffusers. Raises UserError for what is
    none of these.
    """
    if not weights:
        return toybox.load()
    path = Path(weights).expanduser()
    if path.is_file() or path.suffix == ".safetensors":
        return (classes if format_of(path) == classes.FORMAT else toybox).load(path)
    return stable_diffusion.load(weights, **dataclasses.asdict(config))
