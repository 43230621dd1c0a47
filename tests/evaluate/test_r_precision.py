"""CLIP R-Precision against counting, and where it is known."""

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.evaluate.r_precision import (
    AZIMUTHS,
    ELEVATION,
    Row,
    canonical,
    embed_renderings,
    find_captions,
    r_precision,
    read_captions,
    retrieved,
    table,
)


def counted(images, texts, truth):
    """Share and standard error by loops over every cosine."""
    by_prompt = {}
    for run, caption in zip(images, truth, strict=True):
        hits = []
        for image in run:
            cosines = [
                sum(a * b for a, b in zip(image, text, strict=True))
                / sum(a * a for a in image) ** 0.5
                / sum(b * b for b in text) ** 0.5
                for text in texts
            ]
            hits.append(cosines.index(max(cosines)) == caption)
        by_prompt.setdefault(int(caption), []).append(sum(hits) / len(hits))
    means = [sum(runs) / len(runs) for runs in by_prompt.values()]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
    return mean, (variance / len(means)) ** 0.5


def test_against_counting():
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((7, 4)) * rng.uniform(0.1, 10, (7, 1))  # of any length
    truth = np.array([2, 5, 2, 6, 2, 0])  # prompt 2 in three seeds
    near = texts[truth][:, None] / np.linalg.norm(texts[truth], axis=-1)[:, None, None]
    images = near + 0.8 * rng.standard_normal((6, 5, 4))
    found = r_precision(images, texts, truth)
    share, error = counted(images, texts, truth)
    assert 0.2 < share < 0.9 and error > 0.05
    assert found.share == pytest.approx(share) and found.error == pytest.approx(error)
    assert found[2:] == (4, 6, 30, 7)


def test_seeds_and_azimuths_are_no_prompts():
    """A prompt in ten seeds counts once: copies of runs change nothing, least of all the error."""
    rng = np.random.default_rng(1)
    texts, truth = rng.standard_normal((9, 3)), np.array([1, 4, 4, 8])
    images = rng.standard_normal((4, 6, 3))
    once = r_precision(images, texts, truth)
    again = np.array([0, 1, 2, 3, 0, 0, 1, 2])
    more = r_precision(images[again], texts, truth[again])
    assert more[:3] == pytest.approx(once[:3])
    assert (more.runs, more.renderings) == (8, 48)
    turned = r_precision(np.concatenate([images, images], axis=1), texts, truth)
    assert turned[:4] == pytest.approx(once[:4])


def test_perfect_and_never():
    texts = np.eye(5)
    images = np.repeat(3.0 * texts[:, None], 2, axis=1)
    assert r_precision(images, texts, np.arange(5))[:2] == (1.0, 0.0)
    assert r_precision(images, texts, (np.arange(5) + 1) % 5)[:2] == (0.0, 0.0)


def test_chance():
    """Pictures that say nothing find one caption in Q, within what the standard error says."""
    rng = np.random.default_rng(2)
    count = 20
    texts = rng.standard_normal((count, 3))
    truth = np.repeat(np.arange(count), 100)
    found = r_precision(rng.standard_normal((len(truth), 4, 3)), texts, truth)
    assert abs(found.share - 1 / count) < 4 * found.error and found.error < 0.02
    # The captions' own nearness to everything is between prompts, and the error knows: were all
    # renderings independent it would be less than half.
    assert found.error > 2 * (0.05 * 0.95 / found.renderings) ** 0.5


def test_one_prompt_has_no_error():
    found = r_precision(np.ones((2, 1, 2)), np.eye(2) + [[0, 1], [0, 0]], np.array([0, 0]))
    assert found.share == 1.0 and np.isnan(found.error)
    row = table([Row("B/32", found, found)])
    assert "nan" not in row and "100.0 %" in row


def test_retrieval_is_by_angle():
    texts = np.array([[100.0, 0.0], [0.1, 0.1]])
    np.testing.assert_array_equal(retrieved(np.array([[1.0, 0.9], [1.0, 0.1]]), texts), [1, 0])


def test_broken_features_and_no_runs():
    with pytest.raises(UserError, match="no finished runs"):
        r_precision(np.zeros((0, 8, 2)), np.eye(2), np.zeros(0, int))
    for images, texts in (([[[np.nan, 1.0]]], np.eye(2)), ([[[1.0, 1.0]]], [[np.inf, 1], [1, 1]])):
        with pytest.raises(UserError, match="not finite"):
            r_precision(np.array(images), np.array(texts), np.array([0]))


def test_captions_of_a_file():
    text = "a red ball.\n\n  A Blue  Cube \r\na tree,\n"
    captions = read_captions(text)
    assert captions == ["a red ball.", "A Blue  Cube", "a tree,"]
    found = find_captions(captions, ["a tree", "A red ball", "a blue cube.", "a tree."])
    np.testing.assert_array_equal(found, [2, 0, 1, 2])
    assert canonical(" A  Red Ball. ") == "a red ball"
    with pytest.raises(UserError, match="'a green tree' is not in the list"):
        find_captions(captions, ["a tree", "a green tree"])
    with pytest.raises(UserError, match="'A tree.' twice"):
        read_captions("a tree\na ball\nA tree.")
    with pytest.raises(UserError, match="holds 1 captions"):
        read_captions("a tree\n\n")


def test_renderings_are_embedded_by_run():
    rgb = np.random.default_rng(3).uniform(size=(3, 2, 4, 4, 3)).astype(np.float32)
    sizes = []

    def features(images):
        sizes.append(len(images))
        return images.mean((1, 2))

    found = embed_renderings(features, rgb)
    np.testing.assert_allclose(found, rgb.mean((2, 3)), rtol=1e-6)
    assert sizes == [2, 2, 2]


def test_the_table_says_what_it_counts():
    color = r_precision(np.eye(4)[:, None].repeat(8, 1), np.eye(4), np.arange(4))
    geometry = r_precision(np.eye(4)[:, None].repeat(8, 1), np.eye(4), np.array([0, 1, 2, 0]))
    lines = table([Row("B/32", color, geometry), Row("L/14", geometry, geometry)]).splitlines()
    assert lines[2] == "| B/32 | 100.0 ± 0.0 % | 83.3 ± 16.7 % |"
    assert lines[3].startswith("| L/14 | 83.3")
    runs = "4 runs (seeds a prompt: 1) of 8 azimuths"
    assert f"4 prompts among 4 captions, {runs}; chance is 25 %" in lines[-1]
    assert len(AZIMUTHS) == 8 and len(set(AZIMUTHS)) == 8 and ELEVATION == 30.0
