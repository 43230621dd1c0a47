"""Every config in configs/ is what its task takes, and names every value of it."""

import dataclasses
from pathlib import Path

import pytest

from dreamjax.config import build, flatten
from dreamjax.main import load_config
from dreamjax.tasks import dream, train_prior

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def settings_of(name):
    settings = load_config(str(CONFIGS / name)).to_dict()
    settings.pop("task")
    return settings


@pytest.mark.parametrize("name", ["toybox.py", "tpu_v4.py"])
def test_dream_configs(name):
    settings = settings_of(name)
    config = build(dream.DreamConfig, settings)
    assert dream.phases(config)[-1].stop == config.steps
    missing = flatten(dataclasses.asdict(config)).keys() - flatten(settings).keys()
    assert not missing


def test_the_papers_setup():
    config = build(dream.DreamConfig, settings_of("tpu_v4.py"))
    assert (config.steps, config.batch_views, config.guidance_scale) == (15_000, 4, 101.0)
    assert (config.field.width, config.field.blocks, config.field.max_deg) == (128, 5, 8)
    assert config.render_size == ((0.0, 64),) and config.render.radius == 1.4
    assert config.weights == ""


def test_prior_config():
    config = build(train_prior.TrainPriorConfig, settings_of("toybox_prior.py"))
    assert config.steps % config.steps_per_dispatch == 0
    assert len(config.sample_captions) == 16
