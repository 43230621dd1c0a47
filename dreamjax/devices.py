"""Which device JAX runs on, and whether that is what the machine was set up for."""

import os
import sys
from importlib import metadata

# What makes JAX run on an accelerator, and the extra of jax that installs it.
PLUGINS = {"jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13", "libtpu": "tpu"}


def warn_of_unused_plugin() -> None:
    """Say in one line on stderr that JAX runs on the CPU beside an accelerator's plugin.

    Silent where `JAX_PLATFORMS` puts the CPU first. It starts the device.
    """
    import jax  # slow to import

    if os.environ.get("JAX_PLATFORMS", "").split(",")[0].strip().lower() == "cpu":
        return
    if jax.default_backend() != "cpu":
        return
    for name, extra in PLUGINS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        print(
            f"warning: JAX runs on the CPU although {name} {version} is installed. "
            f"{_advice(extra, version)}; JAX_PLATFORMS=cpu silences this.",
            file=sys.stderr,
        )
        return


def _advice(extra: str, version: str) -> str:
    """What to try: plugins of CUDA are released with jaxlib and fit their own version alone."""
    jaxlib = metadata.version("jaxlib")
    if extra.startswith("cuda") and version != jaxlib:
        return f"It does not fit jaxlib {jaxlib}: pip install 'jax[{extra}]=={jaxlib}'"
    return "See `python -c 'import jax; print(jax.devices())'` for its reason"
