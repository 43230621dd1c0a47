"""Flax networks, and nothing else: arrays in, arrays out."""
