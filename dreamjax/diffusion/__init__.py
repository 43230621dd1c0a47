"""The Gaussian diffusion process as pure functions of arrays; knows no network and no 3D."""
