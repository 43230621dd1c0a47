"""View-dependent text: what a view is called goes into its prompt (DreamFusion section 3.2)."""

import jax
from jaxtyping import PyTree

from dreamjax.errors import UserError
from dreamjax.priors.base import Prior, Text
from dreamjax.scene.camera import VIEW_WORDS


def view_prompts(prompt: str) -> list[str]:
    """One text a view word, "<prompt>, front view" and so on, in `VIEW_WORDS` order.

    Raises UserError for an empty prompt.
    """
    prompt = prompt.strip()
    if not prompt:
        raise UserError("the prompt is empty; it should say what to make")
    return [f"{prompt}, {word} view" for word in VIEW_WORDS]


def embed_views(
    prior: Prior, params: PyTree, prompt: str, negative_prompt: str = ""
) -> tuple[Text, Text]:
    """The view texts [4, L, D] in `VIEW_WORDS` order and the text guided away from [1, L, D].

    Runs on the host. Raises UserError for an empty prompt and for text the prior cannot read.
    """
    text = prior.embed(params, [*view_prompts(prompt), negative_prompt.strip()])
    return jax.tree.map(lambda x: x[:-1], text), jax.tree.map(lambda x: x[-1:], text)
