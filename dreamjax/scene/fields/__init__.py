"""Fields: what the scene is made of, as functions of a Gaussian in space; one file each."""
