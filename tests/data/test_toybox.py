"""Pictures of the toybox as G-buffers: what they show and what they are called."""

import numpy as np
import pytest

from dreamjax.data import toybox
from dreamjax.data.pictures import unpack
from dreamjax.toybox.captions import VIEW_NAMES


@pytest.mark.slow
def test_pictures_are_kept_with_two_captions_that_say_no_view(tmp_path, quick_compilation):
    drawn = toybox.draw_toybox(70, 8, tmp_path)
    assert drawn.stored.shape == (70, 8, 8, 11) and drawn.cameras.rotation.shape == (70, 3, 3)
    buffers = unpack(drawn.stored)
    assert (np.asarray(buffers.mask).max((1, 2)) > 0.5).all()
    assert not np.asarray(buffers.cover).any()
    # The nearest point of an object in the unit sphere, from 2.8 to 3.4 away.
    depth = np.where(buffers.mask == 1.0, buffers.depth, np.nan)
    assert 1.6 < np.nanmin(depth) and np.nanmax(depth) < 4.6
    names = {name for _, row in VIEW_NAMES for name in row}
    for text in drawn.captions + drawn.textureless_captions:
        assert text and not any(name in text for name in names)
    assert any("clay" in text for text in drawn.textureless_captions)
    assert any("red" in text.split() for text in drawn.captions)


@pytest.mark.slow
def test_a_finished_drawing_is_read_again(tmp_path, monkeypatch, quick_compilation):
    drawn = toybox.draw_toybox(64, 8, tmp_path)
    monkeypatch.setattr(toybox, "_drawer", None)  # nothing may be drawn
    again = toybox.draw_toybox(64, 8, tmp_path)
    np.testing.assert_array_equal(again.stored, drawn.stored)
    assert again.captions == drawn.captions
