"""Image sets of `tensorflow_datasets`, read without TensorFlow."""

import logging
import warnings
from typing import Annotated, Any

import numpy as np
from PIL import Image

from dreamjax.config import nearest
from dreamjax.data.base import Split
from dreamjax.data.images import Images, squared, whole
from dreamjax.errors import UserError
from dreamjax.settings import Range, settings
from dreamjax.workdir import resolved


@settings
class Tfds:
    """An image set of `tensorflow_datasets`, by its name there."""

    name: str = "cifar10"  # the data set, as "cifar10" or "imagenet_resized/64x64"
    dir: str = ""  # where data sets are kept; empty: the usual place, ~/tensorflow_datasets
    size: Annotated[int, Range(0, 4096)] = 0  # pixels of the middle square; 0: as it is
    splits: tuple[str, str] = (
        "train",
        "test",
    )  # its splits to train on and to hold out
    download: bool = False  # fetch the data set where it is not there
    flip: bool = False  # mirror half of what is trained on

    def load(self, split: Split) -> Images:
        """Return a split; raises UserError for what is not there or has no images."""
        builder = self._builder()
        name = self.splits[("train", "held_out").index(split)]
        if name not in builder.info.splits:
            has = ", ".join(builder.info.splits)
            raise UserError(f"{self.name} has no split {name!r} (data.splits); it has {has}")
        features = builder.info.features
        if "image" not in features:
            raise UserError(f"the data set {self.name} has no images; it has {', '.join(features)}")
        height, width, channels = features["image"].shape
        if not self.size and (height is None or height != width):
            raise UserError(
                f"images of {self.name} are {height} x {width}: set data.size to square them"
            )
        size = self.size or height
        classes = _classes(features)
        source = builder.as_data_source(split=name)

        def rows(numbers):
            examples = [source[int(i)] for i in numbers]
            images = [e["image"] for e in examples]
            if (height, width) != (size, size):
                images = [squared(Image.fromarray(image.squeeze()), size) for image in images]
                images = [image.reshape(size, size, channels) for image in images]
            labels = [e["label"] if classes else 0 for e in examples]
            return whole(self.name, np.stack(images), 256), np.array(labels, np.int32)

        shape = (size, size, channels)
        return Images(self.name, rows, len(source), shape, classes, flip=self.flip)

    def _builder(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow_datasets as tfds  # slow to import
        logging.getLogger("absl").setLevel(logging.ERROR)
        folder = str(resolved(self.dir)) if self.dir else None
        try:
            builder = tfds.builder(self.name, data_dir=folder, file_format="array_record")
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            known = tfds.list_builders(with_community_datasets=False)
            message = f"there is no data set {self.name!r}{nearest(self.name, known)}"
            raise UserError(message) from error
        if self.download:
            builder.download_and_prepare()
        if not builder.is_prepared():
            raise UserError(
                f"the data set {self.name} is not under {builder.data_dir}: "
                "--config.data.download=true fetches it"
            )
        return builder


def _classes(features: Any) -> tuple[str, ...]:
    """The names of the labels; empty where there are none."""
    return tuple(getattr(features["label"], "names", ())) if "label" in features else ()
