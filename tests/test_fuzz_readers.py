"""Malformed weights files, model folders and image folders: each ends in one clear line.

Mutations of tiny valid ones, drawn from a fixed seed: other types, deletions, truncations, random
bytes, huge numbers, deep nesting. In process each must be read or raise `UserError`; as commands
they must end with status 2.
"""

import copy
import dataclasses
import io
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save as save_tensors

from dreamjax import weights
from dreamjax.data.folder import Folder
from dreamjax.errors import UserError
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import deepfloyd, mvdream, stable_diffusion, toybox, zero123
from dreamjax.priors.stable_diffusion import StableDiffusion

from .priors.test_deepfloyd import FILES as DEEPFLOYD
from .test_lowering import MVDREAM, SD15
from .tiny_models import write_tiny_models

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 700  # characters of a message, the path of a temporary folder in it
DEEP = "[" * 100_000 + "]" * 100_000
ODD = [
    None, True, False, 0, -1, 1, 2, 7, 10**9, -(10**9), 10**30, 0.5, 1e300, -1e-300, float("nan"),
    float("inf"), "", "3", "cosine", "é" * 500, "../x", [], [1], ["a"], [None, {}], [0] * 300,
    [[1, 2], [3]], {}, {"a": 1}, {"a": {"b": []}}, json.loads("[" * 40 + "]" * 40),
]  # fmt: skip


def place(rng: np.random.Generator, value: dict | list) -> tuple[dict | list, str | int]:
    """Somewhere inside a JSON value, as what holds it and its key there; near the top as likely."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        child = value[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.4:
            return value, key
        value = child


def mutated(rng: np.random.Generator, plain: dict) -> str:
    """The JSON text of `plain` with something wrong in it, now and then no JSON at all."""
    kind = rng.integers(12)
    if kind == 0:
        text = json.dumps(plain)
        return text[: rng.integers(len(text))]
    if kind == 1:
        return rng.choice([DEEP, "", "null", "[]", "3", '"x"', '{"a":' * 50_000, "{}", "\0"])
    changed = copy.deepcopy(plain)
    for _ in range(rng.integers(1, 4)):
        if not changed:
            break
        inside, key = place(rng, changed)
        if kind in (2, 3):
            del inside[key]
        elif kind == 4 and isinstance(inside, dict):
            inside[f"{key}_more"] = inside.pop(key)
        else:
            inside[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    text = json.dumps(changed)
    return re.sub(r": [^,{[]+", lambda _: ": " + DEEP, text, count=1) if kind == 5 else text


def spoilt(rng: np.random.Generator, content: bytes, head: int) -> bytes:
    """A file's bytes cut short or overwritten, most often within its first `head` bytes."""
    place = int(rng.integers(head if rng.random() < 0.8 else len(content)))
    kind = rng.integers(3)
    if kind == 0:
        return content[:place]
    junk = rng.bytes(int(rng.integers(1, 9)))
    if kind == 1:
        return content[:place] + junk + content[place + len(junk) :]
    return content[:place] + junk + content[place:]


def told(read) -> str | None:
    """The one line that reading ends in; None where it is read. Anything else fails the test."""
    try:
        read()
    except UserError as error:
        text = " ".join(str(error).split())
        assert 0 < len(text) < LONGEST, text
        return text
    return None


def check_all(cases: int, make, least: float) -> None:
    """Make and read every case; at least a share `least` of them must be told."""
    lines = []
    for number in range(cases):
        what, read = make(np.random.default_rng([26, number]))
        try:
            lines.append(told(read))
        except Exception as error:
            raise AssertionError(f"case {number}, {what}: {error!r:.300}") from error
    assert sum(line is not None for line in lines) > least * cases


# Weights files


def write_prior(path: Path) -> Path:
    """The smallest prior of the toybox's kind, its numbers drawn without compiling anything."""
    unet = UNetConfig(
        channels=8, channel_mults=(1, 2), down_blocks=(1,), up_blocks=(1,), middle_blocks=1,
        attention_levels=(1,), head_dim=8, text_dim=16,
    )  # fmt: skip
    vocabulary = ("", "red", "ball", "front", "view")
    text = TextConfig(len(vocabulary), length=4, dim=16, layers=1, heads=2)
    net = toybox.ToyboxNet(unet, text, vocabulary, image_size=8)
    rng = np.random.default_rng(0)
    shapes = weights.shapes_of(net)
    toybox.save(path, net, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes))
    return path


@pytest.fixture(scope="module")
def spoil_weights(tmp_path_factory):
    """Writes malformed files of the tiny prior: its description, the header, or any bytes."""
    folder = tmp_path_factory.mktemp("weights")
    content = write_prior(folder / "whole.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    description = json.loads(header["__metadata__"]["prior"])
    path = folder / "spoilt.safetensors"

    def make(rng):
        kind = ("description", "description", "header", "bytes")[rng.integers(4)]
        changed = copy.deepcopy(header)
        if kind == "description":
            changed["__metadata__"]["prior"] = mutated(rng, description)
        text = (mutated(rng, header) if kind == "header" else json.dumps(changed)).encode()
        whole = struct.pack("<Q", len(text)) + text + body
        path.write_bytes(spoilt(rng, whole, len(text) + 8) if kind == "bytes" else whole)
        return kind, path

    return make


def test_weights_files(spoil_weights):
    def make(rng):
        kind, path = spoil_weights(rng)
        return kind, lambda: toybox.load(path)

    check_all(320, make, 0.7)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"unet.patch": 0}, "unet.patch is 0: expected at least 1 and at most 16"),
        ({"unet.channels": "8"}, "unet.channels is '8': expected a whole number"),
        ({"unet.middle_blocks": 10**9}, "unet.middle_blocks is 1000000000: expected"),
        ({"text.heads": 3}, "16 cannot have 3 heads"),
        ({"view_names": "front"}, "view_names is 'front': expected any number of"),
        (
            {"view_names": [[60.0, "front"]]},
            r"view_names\[0\]\[1\] is 'front': expected any number",
        ),
        ({"view_names": []}, "view_names is .*: expected rows of names"),
        ({"image_size": 9}, "image_size is 9: it must divide by 4"),
        ({"vocabulary": [1, 2]}, r"vocabulary\[0\] is 1: expected text"),
        ({"colour": 1}, "there is no 'colour', only unet, text"),
        ({"unet": None}, "unet is None: expected an object"),
        ({"schedule_steps": float("nan")}, "schedule_steps is nan"),
    ],
)
def test_a_described_prior_that_cannot_be(tmp_path, change, says):
    path = write_prior(tmp_path / "tiny.safetensors")
    plain = json.loads(weights.read_metadata(path, toybox.FORMAT)["prior"])
    for name, value in change.items():
        *parents, last = name.split(".")
        (plain[parents[0]] if parents else plain)[last] = value
    few = {"a": np.zeros(3, np.float32)}
    path.write_bytes(save_tensors(few, {"format": toybox.FORMAT, "prior": json.dumps(plain)}))
    with pytest.raises(UserError, match=f"{path}: cannot make sense of its description: .*{says}"):
        toybox.load(path)


def test_tensors_that_are_no_float32(tmp_path):
    net, params = toybox.load(write_prior(tmp_path / "tiny.safetensors"))
    meta = {"format": toybox.FORMAT, "prior": json.dumps(dataclasses.asdict(net))}
    flat = {name: np.array(value) for name, value in flatten_dict(params, sep=".").items()}
    name = next(iter(flat))
    for value, says in (
        (np.full(flat[name].shape, 1e300), f"{name} is not finite in float32"),
        (flat[name].astype(np.int32), f"{name} is int32: expected real numbers"),
        (flat[name][None], f"does not fit the network: {name} is .*, not "),
    ):
        path = tmp_path / "other.safetensors"
        path.write_bytes(save_tensors(flat | {name: value}, meta))
        with pytest.raises(UserError, match=re.escape(says) if "*" not in says else says):
            toybox.load(path)


# Model folders


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def spoil_models(models):
    """Spoils one file of the folders and gives back its name and how to mend it."""
    names = [*(n for n in models.files if n.endswith(".json")), *models.files]

    def make(rng):
        name = names[rng.integers(len(names))]
        path, content = models.folder / name, models.files[name]
        if name.endswith(".json"):
            path.write_text(mutated(rng, json.loads(content)))
        else:
            path.write_bytes(spoilt(rng, content, min(len(content), 3000)))
        return name, lambda: path.write_bytes(content)

    return make


def test_model_folders(models, spoil_models):
    def make(rng):
        name, mend = spoil_models(rng)

        def read():
            try:
                models.read(name)
            finally:
                mend()

        return name, read

    check_all(320, make, 0.5)


def test_model_folders_that_are_something_else(models):
    """A CLIP text model with its projection loads; an inpainting model is named as that."""
    models.read("unet/config.json")
    config, path = json.loads(models.files["unet/config.json"]), models.folder / "unet/config.json"
    for channels, says in ((9, "is an inpainting model: its UNet takes 9"), (8, "maps 8 channels")):
        path.write_text(json.dumps(config | {"in_channels": channels}))
        assert says in (told(lambda: models.read("unet/config.json")) or "")
    path.write_bytes(models.files["unet/config.json"])
    tensors = models.folder / "text_encoder/model.safetensors"
    tensors.write_bytes(save_tensors(models.text | {"text_projection.weight": np.ones((8, 8))}))
    models.read("text_encoder/model.safetensors")
    tensors.write_bytes(models.files["text_encoder/model.safetensors"])
    config = models.folder / "tokenizer/tokenizer_config.json"
    config.unlink()
    assert "says what texts are padded with" in (told(lambda: models.read("tokenizer/x")) or "")
    tensors.unlink()  # the tokenizer is told first, as tensors take minutes
    whole = StableDiffusion(weights=str(models.folder), cheap_encoder=False)
    assert "says what texts are padded with" in (told(whole.load) or "")
    tensors.write_bytes(models.files["text_encoder/model.safetensors"])
    config.write_bytes(models.files["tokenizer/tokenizer_config.json"])


UNET = "unet/config.json"
ZERO123 = {
    **{name: content for name, content in SD15.items() if "text" not in name},
    "model_index.json": {"_class_name": "Zero1to3StableDiffusionPipeline"},
    UNET: SD15[UNET] | {"in_channels": 8},
    "image_encoder/config.json": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
}  # fmt: skip
DESCRIBED = {
    "deepfloyd": (DEEPFLOYD, lambda at: deepfloyd.describe(at, "float32")),
    "mvdream": (
        MVDREAM,
        lambda at: stable_diffusion.describe(at, "float32", False, False, mvdream.MVDreamNets),
    ),
    "zero123": (ZERO123, lambda at: zero123.describe(at, "float32", False, False)),
}


@pytest.mark.parametrize("kind", DESCRIBED)
def test_descriptions_of_other_models(kind, tmp_path):
    files, describe = DESCRIBED[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    assert told(lambda: describe(tmp_path)) is None

    def make(rng):
        name = list(files)[rng.integers(len(files))]

        def read():
            (tmp_path / name).write_text(mutated(rng, files[name]))
            try:
                describe(tmp_path)
            finally:
                (tmp_path / name).write_text(json.dumps(files[name]))

        return name, read

    check_all(320, make, 0.4)


# Image folders


@pytest.fixture(scope="module")
def spoil_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(1).integers(0, 256, (12, 9, 3), np.uint8)
    files = {}
    for kind in ("png", "jpg", "gif", "bmp", "webp", "tif"):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind))
        files[f"{kind}.{kind}"] = stream.getvalue()
        (folder / f"{kind}.{kind}").write_bytes(stream.getvalue())

    def make(rng):
        names = list(files)
        name = names[rng.integers(len(names))]
        (folder / name).write_bytes(spoilt(rng, files[name], min(len(files[name]), 120)))
        return name, lambda: (folder / name).write_bytes(files[name]), folder

    return make


@pytest.mark.filterwarnings("ignore")  # Pillow's, which the check before training silences
def test_image_folders(spoil_images):
    def make(rng):
        name, mend, folder = spoil_images(rng)

        def read():
            try:
                for split in ("train", "held_out"):
                    data = Folder(dir=str(folder), size=8).load(split)
                    data.rows(np.arange(data.count))
            finally:
                mend()

        return name, read

    check_all(320, make, 0.3)


# As commands


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "dreamjax.main", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "models", "images"])
def test_as_commands(kind, request, tmp_path):
    """Thirty of each that are told in process: status 2, at most three lines, no traceback."""
    spoil = request.getfixturevalue(f"spoil_{kind}")
    models = request.getfixturevalue("models")
    left, number = 30, 0
    while left:
        number += 1
        what, *more = spoil(np.random.default_rng([27, number]))
        if kind == "weights":
            flags = ["--config=toybox_sample", f"--config.prior.weights={more[0]}"]
            line, mend = told(lambda path=more[0]: toybox.load(path)), None
        elif kind == "models":
            flags = ["--config=sd_sample", f"--config.prior.weights={models.folder}"]
            line, mend = told(lambda what=what: models.read(what)), more[0]
            line = None if what.startswith("clip/") else line
        else:
            mend, folder = more
            flags = ["--config=ddpm_digits", "--config.data=folder", f"--config.data.dir={folder}"]
            flags += ["--config.data.size=8"]
            data = Folder(dir=str(folder), size=8)
            line = told(lambda data=data: [data.load(split) for split in ("train", "held_out")])
        if line is not None:
            left -= 1
            found = run(*flags, f"--workdir={tmp_path / str(number)}")
            report = f"case {number}, {what}: {found.returncode}, {found.stderr[-2000:]}"
            assert found.returncode == 2, report
            assert "Traceback" not in found.stderr, report
            assert len(found.stderr.splitlines()) <= 3, report
        if mend is not None:
            mend()
