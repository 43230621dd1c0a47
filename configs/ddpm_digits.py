"""A class-conditional diffusion model of the handwritten digits, 8 x 8 pixels in 17 levels.

    python -m dreamjax.main --config=ddpm_digits --workdir=runs/digits
    python -m dreamjax.main --config=ddpm_digits:sample --workdir=runs/digits_samples
    python -m dreamjax.main --config=ddpm_digits:likelihood --workdir=runs/digits_bound
    python -m dreamjax.main --config=ddpm_digits:tradeoff --workdir=runs/digits_tradeoff

The first trains, eps with a learned-range variance by the hybrid loss: 16 minutes at the 134
images/s of two shared cores (docs/performance.md). The others use what it wrote; the last needs
--config=classifier_digits run before it. On pictures of your own, a class a subfolder:

    python -m dreamjax.main --config=ddpm_digits --config.data=folder --config.data.dir=DIR \
        --config.data.size=32 --workdir=runs/mine
"""

from dreamjax.errors import UserError
from dreamjax.priors.classes import Classes
from dreamjax.priors.classifier import Classifier
from dreamjax.tasks.likelihood import Likelihood
from dreamjax.tasks.sample import Sample
from dreamjax.tasks.tradeoff import Tradeoff
from dreamjax.tasks.train_diffusion import Adm, NoiseSchedule, TrainDiffusion
from dreamjax.training.optimizer import Adam

MODEL = Classes("runs/digits/model.safetensors")
GUIDE = Classifier("runs/digits_classifier/classifier.safetensors")


def get_config(
    what: str = "train",
) -> TrainDiffusion | Sample | Likelihood | Tradeoff:
    tasks = {
        "train": TrainDiffusion(
            steps=2000,
            variance="learned_range",
            loss="hybrid",
            class_dropout=0.1,
            ema_decay=0.998,
            eval_examples=359,
            schedule=NoiseSchedule(shape="cosine"),
            net=Adm(64, channel_mults=(1, 2), res_blocks=1, attention_sizes=(4,), dropout=0.1),
            optimizer=Adam(final_learning_rate=1e-5, warmup=0.05, b2=0.99, clip_norm=1.0),
        ),
        "sample": Sample(prior=MODEL, per_prompt=10, chunk=100),
        "likelihood": Likelihood(prior=MODEL, batch_size=72),
        "tradeoff": Tradeoff(prior=MODEL, classifier=GUIDE),
    }
    if what not in tasks:
        raise UserError(f"after the colon: {', '.join(tasks)}; got {what}")
    return tasks[what]
