"""Where the 3D side and the diffusion side meet: text by view, the distillation loss, the step."""
