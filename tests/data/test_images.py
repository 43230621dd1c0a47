"""Labelled images: digits, folders, TFDS sets, the toybox, and what is refused."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dreamjax.config import choose, replaced
from dreamjax.data.digits import Digits
from dreamjax.data.folder import Folder
from dreamjax.data.images import in_memory, to_x, whole
from dreamjax.data.tfds import Tfds
from dreamjax.data.toybox_pictures import ToyboxPictures
from dreamjax.errors import UserError
from dreamjax.main import load_config
from dreamjax.tasks.train_diffusion import make_net
from dreamjax.toybox.kinds import KINDS


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    train, held_out = (Digits().load(split) for split in ("train", "held_out"))
    assert (train.count, held_out.count) == (1438, 359)
    assert train.shape == (8, 8, 1) and train.levels == 17 and len(train.classes) == 10
    digits = load_digits()
    images, labels = held_out.rows(np.array([0, 358]))
    np.testing.assert_array_equal(images[..., 0], digits.images[[4, 1794]])
    np.testing.assert_array_equal(labels, digits.target[[4, 1794]])
    # No image is in both splits.
    one, other = (
        {image.tobytes() for image in data.rows(np.arange(data.count))[0]}
        for data in (train, held_out)
    )
    assert len(one) == 1438 and not one & other


def test_levels_become_the_whole_range():
    x = to_x(np.arange(17), 17)
    np.testing.assert_allclose(x, np.linspace(-1, 1, 17), atol=1e-7)
    assert x.dtype == np.float32 and to_x(np.array([255]), 256)[0] == 1.0


@pytest.fixture
def folder(tmp_path):
    """Sixty flat pictures of 12 x 8 pixels in two folders, red ones and blue ones."""
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for number in range(30):
            Image.new("RGB", (12, 8), color).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_a_folder(folder):
    data = Folder(dir=str(folder), size=4, flip=True)
    train, held_out = (data.load(split) for split in ("train", "held_out"))
    assert train.count + held_out.count == 60 and 0 < held_out.count < 20
    assert train.classes == ("blue", "red") and train.shape == (4, 4, 3)
    assert train.flip and train.levels == 256
    images, labels = train.rows(np.arange(train.count))
    for image, label in zip(images, labels, strict=True):
        assert (image == ([0, 0, 255], [255, 0, 0])[label]).all()


def test_the_middle_square_is_taken(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    for number in range(20):  # enough that some are to train on
        Image.fromarray(wide).save(tmp_path / f"{number}.png")
    data = Folder(dir=str(tmp_path), size=8).load("train")
    images, labels = data.rows(np.arange(2))
    assert data.classes == () and (images == 200).all() and (labels == 0).all()


def test_a_folder_that_will_not_do(folder):
    with pytest.raises(UserError, match="data.dir is '/nowhere'"):
        Folder(dir="/nowhere").load("train")
    with pytest.raises(UserError, match="data.dir is ''"):
        Folder().load("train")
    for size in (0, -8, 10**6):
        with pytest.raises(UserError, match=f"size is {size}"):
            Folder(dir=str(folder), size=size)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        Folder(dir=str(folder / "empty"), size=4).load("train")
    for path in folder.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:40])
    data = Folder(dir=str(folder), size=4).load("train")
    with pytest.raises(UserError, match="cannot read the image .*png"):
        data.rows(np.array([0]))


def test_an_image_beside_class_folders_is_told(folder):
    for number in range(20):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    with pytest.raises(UserError, match=r"the image \d+.png lies beside folders that are classes"):
        Folder(dir=str(folder), size=4).load("train")


def test_a_folder_takes_the_digits_place_from_the_command_line(folder):
    """As --config.data=folder --config.data.dir=DIR --config.data.size=32 does."""
    task = load_config("ddpm_digits")
    task = replaced(task, {"data": choose(task, "data", "folder")})
    task = replaced(task, {"data.dir": str(folder), "data.size": 32})
    assert task.data == Folder(dir=str(folder), size=32)
    net = make_net(task, task.data.load("train"))
    assert net.classes == ("blue", "red") and net.shape == (32, 32, 3) and net.null_class == 2
    with pytest.raises(UserError, match="no such part, did you mean folder.*digits.*tfds"):
        choose(task, "data", "foldr")


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda x: x.__setitem__((3, 1, 0, 0), np.nan), r"images\[3, 1, 0, 0\] is nan"),
        (lambda x: x.__setitem__((0, 0, 0, 0), -1), r"0\.\.16; images\[0, 0, 0, 0\] is -1"),
        (lambda x: x.__setitem__((4, 2, 1, 0), 17), "is 17"),
        (lambda x: x.__setitem__((4, 2, 1, 0), 0.5), "is 0.5"),
    ],
)
def test_images_that_are_no_levels(change, says):
    images = np.zeros((5, 3, 2, 1))
    change(images)
    with pytest.raises(UserError, match=says):
        whole("mine", images, 17)


def test_arrays_that_do_not_fit():
    with pytest.raises(UserError, match=r"shape \[2, 3\]"):
        whole("mine", np.zeros((2, 3)), 17)
    with pytest.raises(UserError, match="4 images but 3 labels"):
        in_memory("mine", np.zeros((4, 2, 2, 1)), np.zeros(3), ("a",), 256)


def test_what_is_not_installed_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r'scikit-learn: pip install "dreamjax\[diffusion\]"'):
        Digits().load("train")


@pytest.mark.slow
def test_the_toyboxs_pictures_are_labelled_with_their_kind(tmp_path):
    data = ToyboxPictures(dir=str(tmp_path), size=8, counts=(130, 2, 2)).load("train")
    assert (data.count, data.shape, data.levels) == (130, (8, 8, 3), 256)
    assert data.classes == tuple(kind.name for kind in KINDS)
    images, labels = data.rows(np.arange(130))
    assert images.std() > 20 and len(np.unique(labels)) > 10
    with pytest.raises(UserError, match="size is -8"):
        ToyboxPictures(size=-8)


def test_unknown_and_missing_sets(tmp_path):
    with pytest.raises(UserError, match="no data set 'cifar11', did you mean cifar10"):
        Tfds("cifar11", dir=str(tmp_path)).load("train")
    with pytest.raises(UserError, match="cifar10 is not under .*download=true"):
        Tfds("cifar10", dir=str(tmp_path)).load("train")


def test_a_tfds_set(tmp_path, monkeypatch):
    """A builder of our own, prepared without TensorFlow, is read back image by image."""
    import tensorflow_datasets as tfds

    class Stripes(tfds.core.GeneratorBasedBuilder):
        """Eight pictures, each with as many rows lit as its number."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(8, 8, 1)),
                        "label": tfds.features.ClassLabel(names=["even", "odd"]),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for number in range(8):
                image = np.zeros((8, 8), np.uint8)
                image[:number] = 10 * number
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "PNG")
                encoded.seek(0)
                yield number, {"image": encoded, "label": number % 2}

    def make(name, data_dir, file_format):
        return Stripes(data_dir=data_dir, file_format=file_format)

    monkeypatch.setattr(tfds, "builder", make)
    data = Tfds("stripes", dir=str(tmp_path), download=True).load("held_out")
    assert data.count == 8 and data.shape == (8, 8, 1) and data.classes == ("even", "odd")
    images, labels = data.rows(np.arange(8))
    lit = (images[..., 0] > 0).any(-1).sum(-1)
    np.testing.assert_array_equal(np.sort(lit), np.arange(8))
    np.testing.assert_array_equal(lit % 2, labels)
    np.testing.assert_array_equal(images.max((1, 2, 3)), 10 * lit)
    smaller = Tfds("stripes", dir=str(tmp_path), size=4).load("train")
    assert smaller.rows(np.arange(3))[0].shape == (3, 4, 4, 1)
    with pytest.raises(UserError, match="no split 'validation'.* train, test"):
        Tfds("stripes", dir=str(tmp_path), splits=("train", "validation")).load("held_out")
