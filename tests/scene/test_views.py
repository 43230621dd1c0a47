"""Which names views go by."""

import jax.numpy as jnp
import numpy as np

from dreamjax.scene.views import VIEW_WORDS, all_names, name_index, name_place, view_index


def test_view_index_follows_the_definitions():
    cases = [
        (0, 0, "front"), (44, 10, "front"), (-44, 10, "front"), (359, 0, "front"),
        (46, 0, "side"), (90, 59, "side"), (-90, 0, "side"), (-134, 0, "side"), (270, 0, "side"),
        (136, 0, "back"), (180, 0, "back"), (-180, 0, "back"), (-136, 30, "back"), (540, 0, "back"),
        (0, 61, "overhead"), (180, 89, "overhead"), (0, 60, "front"), (0, -80, "front"),
    ]  # fmt: skip
    azimuth, elevation, words = zip(*cases, strict=True)
    index = view_index(jnp.array(azimuth, jnp.float32), jnp.array(elevation, jnp.float32))
    assert index.dtype == jnp.int32
    assert [VIEW_WORDS[i] for i in index] == list(words)


def test_names_by_rows_against_a_loop():
    """Rows of five, four and one name: the nearest in the lowest row that reaches so high."""
    names = (
        (15.0, ("front", "front and side", "side", "back and side", "back")),
        (60.0, ("a", "b", "c", "d")),
        (90.0, ("top",)),
    )
    assert all_names(names)[4:6] == ["back", "a"] and len(all_names(names)) == 10
    rng = np.random.default_rng(3)
    azimuth, elevation = rng.uniform(-540, 540, 200), rng.uniform(-30, 90, 200)
    args = names, jnp.float32(azimuth), jnp.float32(elevation)
    index, (rows, places) = np.asarray(name_index(*args)), name_place(*args)
    for i, (a, e) in enumerate(zip(azimuth, elevation, strict=True)):
        off = min(a % 360.0, -a % 360.0)
        row = 0 if e <= 15.0 else 1 if e <= 60.0 else 2
        first, count = ((0, 5), (5, 4), (9, 1))[row]
        place = off / 180.0 * (count - 1)
        assert rows[i] == row and abs(places[i] - place) < 1e-4
        assert index[i] == first + np.argmin(np.abs(place - np.arange(count)))
    assert {0, 4, 5, 8, 9} <= set(index.tolist())


def test_the_view_words_are_the_nearest_names():
    rows = ((60.0, VIEW_WORDS[:3]), (90.0, VIEW_WORDS[3:]))
    azimuth, elevation = np.meshgrid(np.arange(-720.0, 720.5, 0.5), np.arange(-90.0, 90.5, 2.5))
    found = name_index(rows, jnp.float32(azimuth), jnp.float32(elevation))
    np.testing.assert_array_equal(found, view_index(azimuth, elevation))
