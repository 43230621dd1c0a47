"""Frozen text-to-image diffusion models behind one interface, `base.Prior`."""
