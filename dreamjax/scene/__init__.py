"""The 3D side: cameras, rays, a neural field, shading and volume rendering, as pure functions."""
