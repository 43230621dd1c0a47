"""LoRA files for Stable Diffusion, as they are published: safetensors, read into factors.

Every file names a module of the network and one of its two factors:

    diffusers  unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight [R, I]
               and .lora_B.weight [O, R]; older ones .lora.down.weight and .lora.up.weight, or
               ...attn1.processor.to_q_lora.down.weight; text_encoder.text_model.encoder....
    kohya      lora_unet_down_blocks_0_attentions_0_..._attn1_to_q.lora_down.weight, .lora_up.weight
               and .alpha; lora_te_text_model_encoder_....

The change is alpha / R times their product; where no alpha is named it is R. Convolutions have
down [R, I, H, W] and up [O, R, 1, 1]. Nothing is ever unpickled.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from dreamjax import weights
from dreamjax.errors import UserError
from dreamjax.nets import lora
from dreamjax.priors import published
from dreamjax.settings import short

DOWN = re.compile(r"[._](lora_A|lora[._]down|lora_linear_layer\.down)\.weight$")
UP = re.compile(r"[._](lora_B|lora[._]up|lora_linear_layer\.up)\.weight$")
ALPHA = re.compile(r"\.alpha$")
# Our parts, and how files begin the names of their modules.
BEGINNINGS = {
    "unet": ("unet.", "lora_unet_"),
    "text": ("text_encoder.text_model.", "lora_te_text_model_"),
}
# What tells the files of other kinds or of other models.
OTHERS = {
    r"hada_w\d": "a LoHa",
    r"lokr_w\d": "a LoKr",
    r"dora_scale|lora_magnitude_vector": "a DoRA",
    r"lora_mid": "a LoCon in Tucker form",
    r"^(text_encoder_2\.|lora_te2_|lora_te1_)": "a LoRA for Stable Diffusion XL",
    r"^(transformer\.|lora_transformer_)": "a LoRA for a diffusion transformer",
}
METADATA = "lora_adapter_metadata"  # PEFT's settings, where diffusers writes them


class Module(NamedTuple):
    """A module of the network: its part, the path of its kernel and the kernel's shape."""

    part: str
    path: tuple[str, ...]
    shape: tuple[int, ...]


def merge_file(path: str | Path, params: PyTree, scale: float) -> PyTree:
    """The parameters {"unet", "text", ...} with a LoRA file's changes, `scale` times.

    Raises UserError for a file that cannot be read, that is of another kind or model, or has half a
    pair.
    """
    if Path(path).suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise UserError(
            f"{path} is a pickle, which may run any code when it is read: convert it to "
            "safetensors first"
        )
    modules = {name: m for part in BEGINNINGS for name, m in _modules(part, params[part]).items()}
    factors: dict[str, dict[tuple[str, ...], np.ndarray]] = {part: {} for part in BEGINNINGS}
    with weights.open_file(path) as file:
        names = list(file.keys())
        _refuse_others(path, names)
        settings = _adapter_settings(path, file.metadata() or {})
        for module, found in _by_module(path, names, modules).items():
            read = {kind: weights.tensor(path, file, name) for kind, name in found.items()}
            down, up = _factors(path, found, read, module, settings)
            factors[module.part][(*module.path, "down")] = down
            factors[module.part][(*module.path, "up")] = up
    merged = {
        part: lora.merge(params[part], unflatten_dict(flat), scale)
        for part, flat in factors.items()
        if flat
    }
    return {**params, **merged}


def _modules(part: str, params: PyTree) -> dict[str, Module]:
    """Every name that files have for the modules of a part that have kernels."""
    dotted, kohya = BEGINNINGS[part]
    found = {}
    for path, leaf in cast(dict[tuple[str, ...], Any], flatten_dict(params)).items():
        if path[-1] == "kernel":
            name = published.published_name(".".join(path)).removesuffix(".weight")
            module = Module(part, path[:-1], leaf.shape)
            found[dotted + name] = module
            found[dotted.replace("text_model.", "") + name] = module
            found[kohya + name.replace(".", "_")] = module
    return found


def _refuse_others(path: str | Path, names: list[str]) -> None:
    for pattern, kind in OTHERS.items():
        if found := [name for name in names if re.search(pattern, name)]:
            raise UserError(
                f"{path} is {kind}, by its tensor {found[0][:100]}: expected a LoRA for Stable "
                "Diffusion 1.x or 2.x"
            )


def _by_module(
    path: str | Path, names: list[str], modules: dict[str, Module]
) -> dict[Module, dict[str, str]]:
    """The names of what each module has, by "down", "up" and "alpha"."""
    found: dict[Module, dict[str, str]] = {}
    unknown = []
    for name in names:
        kinds = {"down": DOWN, "up": UP, "alpha": ALPHA}
        kind = next((kind for kind, ending in kinds.items() if ending.search(name)), None)
        module = modules.get(_today(kinds[kind].sub("", name))) if kind else None
        if kind is None or module is None:
            unknown.append(name[:120])
        elif kind in found.setdefault(module, {}):
            twice = f"{found[module][kind][:100]} and {name[:100]}"
            raise UserError(f"{path} has both {twice}: expected one")
        else:
            found[module][kind] = name
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"{path} does not fit the model, which has no {unknown[0]}{more}")
    if not found:
        raise UserError(f"{path} holds no tensor: expected a LoRA for Stable Diffusion 1.x or 2.x")
    for own in found.values():
        if lacking := [kind for kind in ("down", "up") if kind not in own]:
            given = next(iter(own.values()))
            raise UserError(f"{path} has {given[:120]} without its {lacking[0]} weight")
    return found


def _today(module: str) -> str:
    """The present name of a module whose name is of an older layout."""
    module = module.replace(".processor.", ".")
    module = re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", module)
    return re.sub(r"\.to_out$", ".to_out.0", module)


def _adapter_settings(path: str | Path, metadata: dict[str, str]) -> dict[str, Any]:
    """PEFT's settings, by "unet.lora_alpha" and so on; raises UserError for what is not read."""
    try:
        found = weights.parse_object(metadata.get(METADATA, "{}"))
    except ValueError as error:
        raise UserError(f"{path}: cannot make sense of its {METADATA}: {error}") from error
    for name in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "lora_bias"):
        for key, value in found.items():
            if key.endswith(f".{name}") and value:
                raise UserError(f"{path} has {key[:80]} {short(value)}, which is not read")
    return found


def _factors(
    path: str | Path,
    names: dict[str, str],
    read: dict[str, np.ndarray],
    module: Module,
    settings: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """A module's down [*K, I, R] and up [R, O], the latter times alpha / R."""
    down, up = read["down"], read["up"]
    rank = down.shape[0] if down.ndim else 0
    wanted = (max(rank, 1), *published.published_shape("x.kernel", module.shape)[1:])
    if down.shape != wanted:
        raise _misfit(path, names["down"], down.shape, wanted)
    wanted = (module.shape[-1], rank, *[1] * (down.ndim - 2))
    if up.shape != wanted:
        raise _misfit(path, names["up"], up.shape, wanted)
    part = BEGINNINGS[module.part][0].partition(".")[0]
    alpha = settings.get(f"{part}.lora_alpha", rank)
    if "alpha" in read:
        alpha = read["alpha"].reshape(-1)[0] if read["alpha"].size == 1 else None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.floating):
        raise UserError(f"{path}: alpha of {names['down'][:100]} is no number")
    down = published.our_layout("x.kernel", down)
    return down, up.reshape(len(up), rank).T * np.float32(alpha / rank)


def _misfit(path: str | Path, name: str, shape: tuple, wanted: tuple) -> UserError:
    return UserError(
        f"{path} does not fit the model: {name[:120]} is {list(shape)}, not {list(wanted)}; was it "
        "made for another Stable Diffusion?"
    )
