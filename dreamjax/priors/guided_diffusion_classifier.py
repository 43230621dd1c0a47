"""The published classifiers of noisy images (arXiv 2105.05233), which guide sampling."""

import functools

from jaxtyping import PyTree

from dreamjax.nets.adm import Blocks, Channels, Classes
from dreamjax.priors.classifier import ClassifierNet, NetClassifier
from dreamjax.priors.guided_diffusion import Layout, load_classifier
from dreamjax.settings import settings


@settings
class GuidedDiffusionClassifier(Layout, NetClassifier):
    """A published classifier of noisy images; by default ImageNet's of 64 x 64 pixels."""

    channels: Channels = 128  # at the finest level [classifier_width]
    res_blocks: Blocks = 4  # a level [classifier_depth]
    split_qkv_first: bool = False  # the order of q, k and v; the published code's default
    num_classes: Classes = 1000  # that it tells apart

    @functools.cached_property
    def net(self) -> ClassifierNet:
        """The network; raises UserError for sizes that do not fit together."""
        return ClassifierNet(
            self.adm(), self.make_schedule(), tuple(map(str, range(self.num_classes)))
        )

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for a file that does not fit the layout."""
        return load_classifier(
            self.path("classifier", "64x64_classifier.safetensors"), self.net.net, self.num_classes
        )
