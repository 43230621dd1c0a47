"""A procedural, captioned 3D world with exact ground truth, for the shipped prior."""
