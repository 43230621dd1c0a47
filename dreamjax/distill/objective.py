"""What a scene is to please: the protocol of every distillation loss.

An objective looks at renderings and says how they should change. It asks a frozen prior, and may
train parameters of its own beside the scene (a LoRA in VSD); score distillation trains none.
"""

from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Key, PyTree

from dreamjax.clock import Clock
from dreamjax.priors.base import Picture, Prompt
from dreamjax.scene.views import Views


class Frozen(NamedTuple):
    """What an objective reads and never changes: the prior's parameters and the embedded prompt.

    `picture` is for the step, whose scene is to look like it from its camera; None for none.
    """

    params: PyTree
    embedded: PyTree
    picture: Picture | None = None


class Losses(NamedTuple):
    """What an objective makes of renderings.

    `scene` moves the scene and nothing else, `own` the objective's own parameters and nothing else:
    each must stop the gradient to the other side. `metrics` are scalars to show.
    """

    scene: Float[Array, ""]
    own: Float[Array, ""]
    metrics: dict[str, Array]


class Objective(Protocol):
    """A frozen dataclass without arrays; its fields are its settings.

    Its annotation of `prior` says what kind it asks; a dream refuses another.
    """

    def load(self, prior: Any, prompt: Prompt, params: PyTree = None) -> Frozen:
        """What it reads; on the host, once a run.

        `params` are the prior's, where they are loaded already, as for many prompts. Raises
        UserError for a prompt it cannot read.
        """
        ...

    def init(self, key: Key[Array, ""], prior: Any, frozen: Frozen) -> PyTree:
        """The parameters that it trains beside the scene, {} for none."""
        ...

    def loss(
        self,
        prior: Any,
        frozen: Frozen,
        trained: PyTree,
        rgb: Float[Array, "v h w 3"],
        views: Views,
        key: Key[Array, ""],
        clock: Clock,
        cheap: bool,
    ) -> Losses:
        """Losses of V renderings in [0, 1].

        key belongs to this step; what view i draws comes from fold_in(key, views.index[i]) alone,
        so that it does not depend on how views are spread over devices. Losses are means over
        views. `cheap` asks for the prior's cheap way into its own space, for a phase that a rough
        one is good enough for.
        """
        ...


def load_frozen(prior: Any, prompt: Prompt, params: PyTree = None) -> Frozen:
    """The prior's parameters, unless they are given, and its reading of the prompt."""
    params = prior.load() if params is None else params
    return Frozen(params, prior.embed(params, prompt))
