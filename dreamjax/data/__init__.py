"""Pictures to train on: those of named meshes, with the captions that go with them."""
