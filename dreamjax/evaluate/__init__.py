"""How good pictures and finished dreams are, measured against the toybox's ground truth."""
