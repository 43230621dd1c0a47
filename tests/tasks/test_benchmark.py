"""The benchmark's arithmetic; its timings are the machine's own."""

import re
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from dreamjax.main import load_config
from dreamjax.tasks import benchmark
from dreamjax.tasks.benchmark import Row, flops_of, table, timed

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "benchmark.py"


def test_operations_of_a_matrix_product():
    a = jnp.ones((64, 32))
    assert flops_of(lambda x: x @ x.T, a) == pytest.approx(2 * 64 * 32 * 64, rel=0.01)


def test_the_median_leaves_out_the_first_call():
    waits = iter([0.5, 0.01, 0.3, 0.01])
    assert timed(lambda: time.sleep(next(waits)), 3) < 0.2


def test_the_table_states_shares_of_the_first_row():
    rows = [
        Row("matmul", "products", 1, 0.5, 1e9),  # a peak of 2 GFLOP/s
        Row("step", "images", 10, 2.0, 1e9),
        Row("dream", "views", 4, 2.0, float("nan")),
    ]
    text = table(rows)
    assert "| step | 5 images | 0.5 | 25% |" in text
    assert "| dream | 2 views | - | - |" in text


@pytest.mark.slow
def test_everything_is_timed(tmp_path, quick_compilation):
    """The smallest of everything: what matters is that what the tasks run is what is timed."""
    config = load_config(str(CONFIG))
    config.repeats, config.matmul, config.views, config.render_size = 1, 64, 2, 8
    config.batch_size = config.digits.batch_size = 2
    benchmark.run(config, tmp_path / "out")
    text = (tmp_path / "out" / "benchmark.md").read_text()
    rates = [float(rate) for rate in re.findall(r"\| ([0-9.e+]+) (?:images|views) \|", text)]
    assert len(rates) == 9 and min(rates) > 0.0
