"""A scene's parts by name, and its parameters."""

import jax
import numpy as np
import pytest

from dreamjax import config
from dreamjax.errors import UserError
from dreamjax.scene.backgrounds.backdrops import Backdrops
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.backgrounds.textures import Textures
from dreamjax.scene.density import Contrast
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Entropy, Smoothness
from dreamjax.scene.scene import Scene, init_scene


@pytest.mark.parametrize(
    ("path", "text", "part"),
    [
        ("field", "mlp", Mlp()),
        ("background", "learned", Learned()),
        ("background", "textures", Textures()),
        ("background", "backdrops", Backdrops()),
        ("density.contrast", "contrast", Contrast()),
        ("density.blob", "none", None),
        ("penalties", "entropy,smoothness", (Entropy(), Smoothness())),
        ("penalties", "none", ()),
    ],
)
def test_parts_are_found_by_name(path, text, part):
    assert config.choose(Scene(), path, text) == part


def test_an_unknown_part_is_told_with_those_that_are_known():
    with pytest.raises(UserError, match="did you mean learned.*known: backdrops, learned, textur"):
        config.choose(Scene(), "background", "learnt")


def test_a_scene_survives_json():
    scene = Scene(background=Textures(each=8), penalties=(Entropy(weight=0.5), Smoothness()))
    assert config.from_plain(config.to_plain(scene)) == scene


def test_field_and_background_have_keys_of_their_own(quick_compilation):
    scene = Scene(field=Mlp(width=8, blocks=1), background=Learned(width=8))

    @jax.jit
    def both(key):
        first, second = jax.random.split(key)
        apart = {"field": scene.field.init(first), "background": scene.background.init(second)}
        return init_scene(key, scene), apart

    together, apart = both(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, together, apart)
