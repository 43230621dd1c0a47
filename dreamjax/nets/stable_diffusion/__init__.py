"""Stable Diffusion's networks (arXiv 2112.10752), one a file, under the published names."""
