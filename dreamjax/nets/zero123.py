"""CLIP's image encoder as Zero123 has it, `CLIPVisionModelWithProjection`, under its names."""

import flax.linen as nn
from jaxtyping import Array, Float

from dreamjax.nets.stable_diffusion.clip import CLIPVision, CLIPVisionConfig


class ImageEncoder(nn.Module):
    """Normalised images to features, of any length, as they are projected."""

    config: CLIPVisionConfig
    projection_dim: int

    def setup(self):
        """Name the parts as published."""
        self.vision_model = CLIPVision(self.config)
        self.visual_projection = nn.Dense(self.projection_dim, use_bias=False)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n p"]:
        """Map images [N, H, W, 3] to features [N, P]."""
        return self.visual_projection(self.vision_model(images))
