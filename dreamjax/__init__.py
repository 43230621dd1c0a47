"""Text to 3D by score distillation in pure JAX: diffusion, neural fields, and where they meet.

    import dreamjax

    obj = dreamjax.dream("a purple chair")

See `dreamjax.api`. Importing the package itself loads nothing heavy and starts no device.
"""

__version__ = "0.2.0"
__all__ = ["dream", "load"]


def __getattr__(name: str):
    if name in __all__:
        from dreamjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'dreamjax' has no attribute {name!r}")
