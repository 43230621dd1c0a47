"""Labelled images: digits, folders, TFDS sets, the toybox, and what is refused."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from PIL import Image

from dreamjax.config import choose, replaced
from dreamjax.data.digits import Digits
from dreamjax.data.folder import Folder, are_held_out, classes_of
from dreamjax.data.images import in_memory, read_image, to_x, whole
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
    Image.new("RGB", (8, 8)).save(folder / "empty" / "one.gif")
    with pytest.raises(UserError, match="there are 1 images .*: expected at least 2"):
        Folder(dir=str(folder / "empty"), size=4).load("train")


def big_png() -> bytes:
    """A PNG of 30000 x 30000 pixels without its pixels."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0), b"IDAT": b""}
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "truncated"),
        (lambda path: path.write_bytes(big_png()), "too large: expected at most 8192 x 8192"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF"), "cannot identify"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is no file"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "there is no such file"),
    ],
    ids=["truncated", "large", "another kind", "pipe", "link to nothing"],
)
def test_an_image_that_cannot_be_read_is_told_before_training(tmp_path, spoil, says):
    rng = np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    data = Folder(dir=str(tmp_path), size=8)
    trained = {split: data.load(split).count for split in ("train", "held_out")}
    assert sum(trained.values()) == 12
    spoil(tmp_path / "7.png")
    with pytest.raises(UserError, match=f"cannot read the image .*7.png: .*{says}") as error:
        [data.load(split) for split in ("train", "held_out")]
    assert "\n" not in str(error.value)


def test_what_is_no_image_is_counted_and_left_out(folder, capsys):
    for place in ("1.png", "2.gif", "red/._5.png", ".trash/3.png", "__MACOSX/red/._6.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / place)
    (folder / "blue" / "x.png").mkdir()
    (folder / "red" / "notes.txt").write_text("red")
    train, held_out = (Folder(dir=str(folder), size=4).load(s) for s in ("train", "held_out"))
    assert train.classes == ("blue", "red") and train.count + held_out.count == 60
    line = f"{folder}: {train.count} images to train on, {held_out.count} held out; skipped "
    printed = capsys.readouterr().out
    assert printed.startswith(line) and printed.count("\n") == 1
    for part in ("3 hidden", "1 folders named as images", "2 beside the folders of classes"):
        assert part in printed


def test_a_small_folder_holds_one_out(tmp_path, capsys):
    """Of 30 pictures named 000.bmp to 029.bmp none was by its checksum, and they were refused."""
    for number in range(30):
        Image.new("L", (8, 8)).save(tmp_path / f"{number:03}.bmp")
    counts = [Folder(dir=str(tmp_path), size=4).load(s).count for s in ("train", "held_out")]
    assert counts == [29, 1] and "29 images to train on, 1 held out" in capsys.readouterr().out
    for count in (2, 3):
        for first in range(40):
            kept = are_held_out([Path(f"{first + i}.png") for i in range(count)])
            assert any(kept) and not all(kept)


def test_folders_of_classes_on_windows():
    here = [PurePosixPath(p) for p in ("a/1.png", "a/b/2.png", "c/3.png")]
    there = [PureWindowsPath(p) for p in ("a\\1.png", "a\\b\\2.png", "c\\3.png")]
    assert classes_of(here) == classes_of(there) == ("a", "c")
    assert are_held_out(here) == are_held_out(there)


def test_images_are_read_as_they_are_meant(tmp_path):
    """Turned by EXIF, 16 bits scaled, transparency over white, first frames, other formats."""
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4], upright[4:] = (250, 0, 0), (0, 0, 250)
    turned = Image.fromarray(np.rot90(upright).copy())  # a quarter to the left; EXIF turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "exif.jpg", exif=exif, quality=95, subsampling=0)
    assert np.abs(read_image(tmp_path / "exif.jpg", 8).astype(int) - upright).max() < 30
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        found = read_image(tmp_path / name, 8)
        np.testing.assert_array_equal(found[..., 1], np.round(grey / 257.0))
    glass = np.zeros((8, 8, 4), np.uint8)
    glass[..., 0], glass[..., 3] = 200, np.repeat([0, 128, 255, 255], 2)[:, None]
    Image.fromarray(glass).save(tmp_path / "glass.png")
    share = glass[..., 3:] / 255.0
    expected = share * [200, 0, 0] + (1 - share) * 255
    assert np.abs(read_image(tmp_path / "glass.png", 8) - expected).max() <= 1.0
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "moving.gif", 8) == [255, 0, 0]).all()
    palette = Image.fromarray(upright).quantize(4)
    palette.save(tmp_path / "clear.png", transparency=int(np.asarray(palette)[0, 0]))
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png", 8)[0, 0], 255)
    Image.fromarray(upright).save(tmp_path / "rgb.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.tiff", 8), upright)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(UserError, match="it holds real numbers"):
        read_image(tmp_path / "real.tif", 8)


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
