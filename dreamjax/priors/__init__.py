"""Frozen diffusion models of images, each a prior behind one interface, `base.Prior`."""
