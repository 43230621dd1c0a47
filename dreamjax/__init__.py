"""Text to 3D by score distillation in pure JAX: diffusion, neural fields, and where they meet."""

__version__ = "0.1.0"
