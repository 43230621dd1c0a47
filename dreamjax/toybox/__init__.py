"""A procedural, captioned 3D world with exact ground truth, which the shipped prior is trained on."""
