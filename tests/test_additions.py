"""The promise of the house: a new idea is one new file, named in a config; nothing else changes.

Every part here is written outside of the package, as a user would, and a whole dream is made of
them by the command line: a prior, an objective that trains something itself, a field, a density
contrast, a penalty, a background, an optimizer and an exporter.
"""

import json
import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import config as config_lib
from dreamjax.clock import Ramp
from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import cosine
from dreamjax.distill.objective import Frozen, Losses
from dreamjax.main import main
from dreamjax.priors.base import Conditions, decode_pixels, encode_pixels
from dreamjax.scene.fields.base import FieldOutput
from dreamjax.settings import Positive, settings
from dreamjax.tasks.dream import load
from dreamjax.training.optimizer import skip_nonfinite

pytestmark = pytest.mark.usefixtures("quick_compilation")
MODULE = __name__


@settings
class Blueness:
    """A prior that believes every picture is blue: eps is what is left of it."""

    size: int = 8  # H = W in pixels

    schedule = cosine(100)
    parameterisation = Parameterisation("x0", "fixed_small")

    @property
    def image_size(self):
        """In pixels."""
        return self.size

    @property
    def shape(self):
        """Of its pictures."""
        return (self.size, self.size, 3)

    def load(self):
        """One colour."""
        return {"blue": jnp.array([-1.0, -1.0, 1.0])}

    def embed(self, params, prompt):
        """How blue, by the length of the prompt."""
        return jnp.float32(min(len(prompt.text), 10) / 10)

    def condition(self, embedded, views):
        """The same from every side."""
        told = jnp.broadcast_to(embedded, views.index.shape)
        return Conditions(told, jnp.zeros_like(told))

    def encode(self, params, rgb, keys, cheap=False):
        """Pixels."""
        return encode_pixels(rgb, self.size)

    def decode(self, params, z_0):
        """Pixels."""
        return decode_pixels(z_0)

    def predict(self, params, z_t, t, condition):
        """x_0: blue where it is asked for, black elsewhere."""
        colour = condition[:, None, None, None] * (params["blue"] + 1.0) - 1.0
        return jnp.broadcast_to(colour, z_t.shape)


@settings
class Critic:
    """An objective that learns beside the scene: the mean colour so far, which renderings avoid."""

    def load(self, prior, prompt, params=None):
        """The prior's parameters and the prompt."""
        params = prior.load() if params is None else params
        return Frozen(params, prior.embed(params, prompt))

    def init(self, key, prior, frozen):
        """A colour of its own."""
        return {"seen": jnp.zeros(3)}

    def loss(self, prior, frozen, trained, rgb, views, key, clock, cheap):
        """Renderings go to the prior's colour; the critic's goes to theirs."""
        blue = 0.5 * frozen.params["blue"] + 0.5
        scene = jnp.mean((rgb - blue) ** 2)
        own = jnp.mean((jax.lax.stop_gradient(rgb) - trained["seen"]) ** 2)
        return Losses(scene, own, {"loss": scene, "own": own})


@settings
class Lump:
    """A field of five numbers: a ball of one colour."""

    radius: Positive = 0.5  # in scene units

    def init(self, key):
        """Grey."""
        return {"color": jnp.zeros(3), "log_density": jnp.zeros(()), "size": jnp.zeros(())}

    def __call__(self, params, mean, var):
        """Dense inside, thin outside."""
        off = jnp.sqrt(jnp.sum(mean**2, -1) + 1e-6) - self.radius - params["size"]
        albedo = jnp.broadcast_to(jax.nn.sigmoid(params["color"]), mean.shape)
        return FieldOutput(params["log_density"] + 8.0 - 10.0 * off, albedo)


@settings
class Darkness:
    """A penalty on bright renderings."""

    weight: Ramp = Ramp(0.1, 0.1)  # over the run
    needs_normals: ClassVar[bool] = False

    def __call__(self, seen, clock):
        """Mean brightness of each view."""
        return jnp.mean(seen.rgb, axis=(1, 2, 3))


@settings
class Grey:
    """A background of one grey."""

    level: Positive = 0.5  # of white
    each: ClassVar[int] = 1

    def init(self, key):
        """Nothing is learnt."""
        return {}

    def __call__(self, params, key, direction):
        """The same everywhere."""
        return jnp.full((1, *direction.shape), self.level)


@settings
class Descend:
    """Plain gradient descent."""

    rate: Positive = 2.0  # of the gradient

    def make(self, total_steps):
        """The same rate all the time."""
        import optax

        return skip_nonfinite(optax.sgd(self.rate))


@settings
class Poem:
    """`poem.txt`: the object in words."""

    def __call__(self, result, folder):
        """Write it."""
        path = folder / "poem.txt"
        density, albedo = result.query(np.zeros((1, 3), np.float32))
        path.write_text(f"{result.prompt} {density[0]:.1f} {albedo[0].round(2).tolist()}")
        return [path]


PARTS = {
    "prior": Blueness,
    "objective": Critic,
    "field": Lump,
    "penalties": Darkness,
    "background": Grey,
    "optimizer": Descend,
    "objective_optimizer": Descend,
    "exports": Poem,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compilation):
    """A dream of these parts alone, by the command line."""
    sys.modules.setdefault(MODULE, sys.modules[__name__])
    folder = tmp_path_factory.mktemp("additions") / "run"
    args = [f"--config.{name}={MODULE}:{cls.__name__}" for name, cls in PARTS.items()]
    args += [
        "--config.steps=6",
        "--config.batch_views=2",
        "--config.prompt=blue",
        "--config.facing=none",
    ]
    args += [
        "--config.phases=phase",
        "--config.phases.phase.size=8",
        "--config.objective_optimizer.rate=0.5",
        "--config.renderer.samples=8",
    ]
    args += [
        "--config.views_every=0",
        "--config.density.blob=none",
        "--config.density.contrast=none",
    ]
    args += [
        "--config.log_every=1",
        "--config.background.level=0.25",
        "--config.penalties.darkness.weight=0.2",
    ]
    status = main(["dreamjax", "--config=toybox", f"--workdir={folder}", *args])
    assert status == 0
    return folder


def test_a_dream_is_made_of_new_parts_alone(run):
    finished = load(run)
    kinds = {name: getattr(finished.task, name) for name in PARTS}
    assert {n: type(v[0] if isinstance(v, tuple) else v) for n, v in kinds.items()} == PARTS
    assert finished.task.background.level == 0.25
    assert finished.task.penalties[0].weight == Ramp(0.2, 0.2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # The scene and what the objective trains beside it both learn.
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["own"] < 0.5 * rows[0]["own"]
    assert all(row["darkness_penalty"] > 0.0 for row in rows)
    red, green, blue = finished.object3d.query(np.zeros((1, 3), np.float32))[1][0]
    assert blue > 0.5 > max(red, green)


def test_the_new_exporter_wrote_its_file(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["exports"] == {"poem": {"files": ["poem.txt"]}}
    assert (run / "poem.txt").read_text().startswith("blue ")


def test_its_config_says_where_parts_come_from(run):
    plain = json.loads((run / "config.json").read_text())
    assert plain["field"] == {"class": f"{MODULE}:Lump", "radius": 0.5}
    assert config_lib.from_plain(plain).field == Lump()


def test_a_part_of_a_module_that_is_not_imported_is_told(run, tmp_path):
    text = (run / "config.json").read_text().replace(f"{MODULE}:Lump", "not_here:Lump")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(config_lib.UserError, match="not_here:Lump, which is not known here"):
        load(tmp_path)


def test_a_part_that_lacks_a_method_is_refused(capsys):
    args = ["--config=toybox", f"--config.field={MODULE}:Poem", "--workdir=/nowhere"]
    assert main(["dreamjax", *args]) == 2
    assert "--config.field is Poem(): expected Field" in capsys.readouterr().err
