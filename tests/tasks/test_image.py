"""A dream that is given a picture: mistakes touch nothing, and the front comes to look like it."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dreamjax.distill.facing import Facing
from dreamjax.distill.reference import Reference
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.errors import UserError
from dreamjax.export.views import Views
from dreamjax.main import load_config, main
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream, load
from dreamjax.training.optimizer import Adam

from ..tiny import write_tiny_prior

pytestmark = pytest.mark.usefixtures("quick_compilation")
PROMPT = "a red ball"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_prior(tmp_path_factory.mktemp("weights") / "tiny.safetensors", size=16)


def draw_disc(path, radius=20, alpha=True):
    """A red disc with a yellow upper half."""
    x, y = np.meshgrid(*[np.arange(64) - 31.5] * 2)
    inside = np.hypot(x, y) < radius
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[inside] = (230, 30, 20, 255)
    rgba[inside & (y < 0)] = (230, 220, 20, 255)
    Image.fromarray(rgba if alpha else rgba[..., :3]).save(path)
    return str(path)


def make_task(weights, **changes):
    task = Dream(
        prompt=PROMPT,
        prior=Toybox(weights=str(weights)),
        objective=Sds(guidance_scale=4.0),
        steps=60,
        steps_per_dispatch=10,
        phases=(Phase(size=16, lit=False),),
        batch_views=1,
        field=Mlp(width=16, blocks=1),
        density=Density(bias=-2.0, blob=Blob(strength=6.0)),
        renderer=Renderer(samples=12, normal_samples=2),
        optimizer=Adam(1e-2),
        exports=(Views(16),),
        views_every=0,
        log_every=10,
    )
    return dataclasses.replace(task, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(image="x.png", prompt="", prompts="x.txt"), "image is 'x.png', prompts 'x.txt'"),
        (dict(image="x.png", facing=Facing()), "facing asks for the front"),
        (dict(reference=Reference(depth_image="d.png")), "set image too"),
    ],
)
def test_settings_that_cannot_be_meant(weights, changes, says):
    with pytest.raises(UserError, match=says):
        make_task(weights, **changes)


def test_bad_input_touches_nothing(weights, tmp_path):
    good = draw_disc(tmp_path / "good.png")
    for changes, says in (
        (dict(image=str(tmp_path / "none.png")), "there is no such file"),
        (dict(image=draw_disc(tmp_path / "rgb.png", alpha=False)), "no alpha channel"),
        (dict(image=draw_disc(tmp_path / "empty.png", radius=0)), "transparent everywhere"),
        (dict(image=good, prompt=""), "Toybox reads words, not pictures: set prompt"),
        (dict(image=good, reference=Reference(depth_image="none.png")), "no such file"),
    ):
        with pytest.raises(UserError, match=says) as error:
            make_task(weights, **changes).run(tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_the_config_says_what_it_needs_on_a_plain_machine(tmp_path, capsys):
    image = draw_disc(tmp_path / "disc.png")
    folder = tmp_path / "run"
    for args, says in (
        ([], "Zero123 needs weights"),
        ([f"--config.image={image}"], "Zero123 needs weights"),
        ([f"--config.image={image}", "--config.prior=toybox"], "Toybox reads words"),
        (["--config.prior=toybox"], "has no word in it"),
    ):
        assert main(["dreamjax", "--config=zero123", f"--workdir={folder}", *args]) == 2
        (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert says in said and not folder.exists()


def test_the_picture_is_in_front_as_far_away_as_cameras_are(tmp_path):
    task = dataclasses.replace(
        load_config("zero123"),
        image=draw_disc(tmp_path / "disc.png"),
        reference=Reference(elevation=30.0),
    )
    picture = task.picture()
    far, (distance, _) = np.linalg.norm(picture.camera.position), task.cameras.distance
    np.testing.assert_allclose(far, distance, rtol=1e-6)
    where = distance * np.array([np.sqrt(0.75), 0.0, 0.5])
    np.testing.assert_allclose(picture.camera.position, where, atol=1e-5)
    assert picture.depth is None and make_task("x").picture() is None


@pytest.mark.slow
def test_the_front_looks_like_the_picture_only_where_one_is_given(weights, tmp_path):
    """Beside a prior that nobody trained: colours above and below, and the silhouette."""
    image = draw_disc(tmp_path / "disc.png")
    wrong, masks = [], []
    for name, changes in (("without", {}), ("with", dict(image=image))):
        task = make_task(weights, **changes)
        task.run(tmp_path / name)
        picture = make_task(weights, image=image).picture()
        finished = load(tmp_path / name)
        seen = finished.object3d.picture(0.0, 0.0, 64)
        rgb, mask = (np.asarray(x)[4::8, 4::8] for x in (picture.rgb, picture.mask))
        unlit = np.asarray(seen.albedo) + 1.0 - np.asarray(seen.opacity)[..., None]
        wrong.append(np.abs(unlit - rgb).mean())
        masks.append(np.abs(np.asarray(seen.opacity) - mask).mean())
    assert wrong[1] < 0.6 * wrong[0] and masks[1] < 0.6 * masks[0], (wrong, masks)
    rows = [json.loads(line) for line in (tmp_path / "with/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["reference_color"] < 0.5 * rows[0]["reference_color"]
    assert (tmp_path / "with" / "views.png").exists()
