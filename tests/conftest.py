"""What the whole suite runs under: the CPU, unless JAX_PLATFORMS asks for more."""

import atexit
import gc
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if hasattr(signal, "SIGHUP"):  # under nohup, tests and what they start would not hear it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests that run the same task twice compile it once.
    cache = tempfile.mkdtemp(prefix="dreamjax-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

from .shapes import check  # noqa: E402  only after the environment is set

# The rooms whose annotations hold in every call; `evaluate` and `tasks` are not gone through yet.
ROOMS = (
    "clock",
    "data",
    "diffusion",
    "distill",
    "export",
    "nets",
    "priors",
    "scene",
    "toybox",
    "training",
)
check([f"dreamjax.{room}" for room in ROOMS])


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Drop compiled programs long before they need all the memory mappings that Linux grants.

    A process may have 65,530; XLA crashes where it gets no more.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_text().count("\n") > 20_000:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile two to three times faster, unoptimised, where little is run and much compiled."""
    import jax  # only after the environment is set

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unchecked():
    """Call without the check of annotations: what the package itself says of wrong arguments."""
    import jaxtyping  # only after the environment is set

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
