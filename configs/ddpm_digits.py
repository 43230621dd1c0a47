"""A class-conditional diffusion model of the handwritten digits, 8 x 8 pixels in 17 levels.

    python -m dreamjax.main --config=configs/ddpm_digits.py --workdir=runs/digits
    python -m dreamjax.main --config=configs/ddpm_digits.py:sample --workdir=runs/digits_samples
    python -m dreamjax.main --config=configs/ddpm_digits.py:likelihood --workdir=runs/digits_bound
    python -m dreamjax.main --config=configs/ddpm_digits.py:tradeoff --workdir=runs/digits_tradeoff

The first trains, eps with a learned-range variance by the hybrid loss: 16 minutes at the 134
images/s of two shared cores (docs/performance.md). The others use what it wrote; the last needs
configs/classifier_digits.py run before it.
"""

from ml_collections import config_dict

MODEL = "runs/digits/model.safetensors"
CLASSIFIER = "runs/digits_classifier/classifier.safetensors"
DATA = dict(name="digits", dir="", flip=False)


def get_config(what: str = "train") -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    known = {"train": train, "sample": sample, "likelihood": likelihood, "tradeoff": tradeoff}
    if what not in known:
        raise ValueError(f"after the colon: {', '.join(known)}; got {what}")
    return config_dict.ConfigDict(known[what]())


def train() -> dict:
    """The training run."""
    return dict(
        task="train_diffusion",
        seed=0,
        steps=2000,
        batch_size=64,
        prediction="eps",
        variance="learned_range",
        loss="hybrid",
        vlb_weight=0.001,
        min_snr_gamma=0.0,
        v_weighting=False,
        by_importance=False,
        class_dropout=0.1,
        ema_decay=0.998,
        steps_per_dispatch=1,
        log_every=50,
        eval_every=500,
        eval_examples=359,
        checkpoint_every=500,
        data=DATA,
        schedule=dict(shape="cosine", steps=1000, zero_terminal_snr=False),
        net=dict(
            channels=64,
            channel_mults=(1, 2),
            res_blocks=1,
            attention_sizes=(4,),
            heads=4,
            dropout=0.1,
        ),
        optimizer=dict(
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            warmup_steps=100,
            b1=0.9,
            b2=0.99,
            clip_norm=1.0,
        ),
        sampler=dict(sampler="ddim", steps="50", guidance_scale=1.0),
        samples_per_class=8,
    )


def sample() -> dict:
    """Pictures of all ten digits."""
    return dict(
        task="sample",
        seed=0,
        weights=MODEL,
        classifier="",
        prompts=(),
        negative_prompt="",
        per_prompt=10,
        chunk=100,
        image="",
        mask="",
        start=1.0,
        sampler=dict(
            sampler="ddim",
            steps="50",  # or sections of the chain, as "ddim50" or "10,15,20"
            eta=0.0,
            guidance_scale=1.0,
            rescale=0.0,
            classifier_scale=0.0,
        ),
    )


def likelihood() -> dict:
    """Bits per dimension of the held-out digits."""
    return dict(task="likelihood", seed=0, weights=MODEL, examples=0, batch_size=72, data=DATA)


def tradeoff() -> dict:
    """How right and how alike samples become as guidance grows, by both kinds of it."""
    return dict(
        task="tradeoff",
        seed=0,
        weights=MODEL,
        classifier=CLASSIFIER,
        per_class=50,
        guidance_scales=(1.5, 2.0, 3.0, 5.0),
        classifier_scales=(0.5, 1.0, 2.0, 5.0),
        sampler=dict(sampler="ddim", steps="50"),
        data=DATA,
    )
