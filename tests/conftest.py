"""What the whole suite runs under: the CPU, unless JAX_PLATFORMS asks for more."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
