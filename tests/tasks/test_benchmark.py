"""The benchmark's arithmetic; its timings are the machine's own."""

import re
import time

import jax.numpy as jnp
import pytest

from dreamjax.config import replaced
from dreamjax.main import load_config
from dreamjax.tasks.benchmark import Row, flops_of, table, timed


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
    task = load_config("benchmark")
    small = {
        "repeats": 1,
        "matmul": 64,
        "batch_size": 2,
        "dream.batch_views": 2,
        "dream.phases.1.size": 8,
        "digits.batch_size": 2,
    }
    replaced(task, small).run(tmp_path / "out")
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "dreaming step, 2 views of 8 x 8, shaded" in text
    rates = [float(rate) for rate in re.findall(r"\| ([0-9.e+]+) (?:images|views) \|", text)]
    assert len(rates) == 9 and min(rates) > 0.0
