"""Pictures from OpenAI's published ImageNet model of 64 x 64 pixels, guided by its classifier.

    python -m dreamjax.main --config=guided_diffusion_sample --workdir=runs/imagenet \
        --config.prior.weights=64x64_diffusion.safetensors \
        --config.classifier.weights=64x64_classifier.safetensors --config.prompts='("207", "88")'

Prompts are ImageNet's class numbers (207 is a golden retriever, 88 a macaw). The weights are those
of https://github.com/openai/guided-diffusion, once made safetensors by PyTorch:

    python -c 'import sys, torch; from safetensors.torch import save_file; \
        save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])' \
        64x64_diffusion.pt 64x64_diffusion.safetensors

The settings of the other sizes are in that page's MODEL_FLAGS; the prior's names are beside each in
--help. Without a classifier: --config.classifier=none --config.sampler.classifier_scale=0.
"""

from dreamjax.priors.guided_diffusion import GuidedDiffusion
from dreamjax.priors.guided_diffusion_classifier import GuidedDiffusionClassifier
from dreamjax.priors.sampling import Sampler
from dreamjax.tasks.sample import Sample


def get_config() -> Sample:
    return Sample(
        prior=GuidedDiffusion(),
        classifier=GuidedDiffusionClassifier(),
        prompts=("207", "88"),
        per_prompt=4,
        chunk=8,
        sampler=Sampler(method="ancestral", steps=250, classifier_scale=1.0),
    )
