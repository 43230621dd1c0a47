"""Grids and surfaces in blocks, and memory that is not there."""

import subprocess
import sys

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.export import march, memory
from dreamjax.export.extract import extract_mesh, is_closed
from dreamjax.export.surface import Surface


def lumps(points):
    """Two lumpy balls, one of them hollow and open at a side."""
    x, y, z = points.T
    radius = np.linalg.norm(points, axis=-1)
    first = (radius < 0.6 + 0.05 * np.sin(17 * x + 3 * y)) & (radius > 0.4) & (z < 0.5)
    second = np.linalg.norm(points - [0.7, 0.1, 0.5], axis=-1) < 0.12
    return 100.0 * (first | second).astype(np.float32)


def grey(points):
    return np.full_like(points, 0.5)


@pytest.mark.parametrize("block", [1, 5000, 20_000])
def test_blocks_give_the_mesh_of_the_whole(monkeypatch, block):
    surface = Surface(resolution=48, max_faces=10**6, min_part=0.0)
    whole = extract_mesh(lumps, grey, 1.0, surface)
    monkeypatch.setattr(march, "BLOCK", block)
    blocks = extract_mesh(lumps, grey, 1.0, surface)
    assert is_closed(blocks.faces) and blocks.faces.shape == whole.faces.shape

    def triangles(mesh):
        corners = mesh.vertices[mesh.faces].round(5).reshape(-1, 3, 3)
        return {tuple(sorted(map(tuple, face))) for face in corners.tolist()}

    assert triangles(blocks) == triangles(whole)


def test_a_mesh_that_needs_too_much_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    with pytest.raises(UserError, match="512 points a side needs about 1.6 GB .* lower surface"):
        extract_mesh(lambda points: 1 / 0, grey, 1.0, Surface(resolution=512))
    monkeypatch.setattr(memory, "available", lambda: march.BLOCK_BYTES + 6e6)
    with pytest.raises(UserError, match=r"a mesh of \d+ vertices needs"):
        noise = np.random.default_rng(0)
        extract_mesh(lambda p: 99.0 * noise.integers(2, size=len(p)), grey, 1.0, Surface(80))


def test_the_smallest_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.available() == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  4000 kB\nHuge: x\n")
    assert memory.available() == 4_096_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 500000\n")
    assert memory.available() == 4_096_000
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.available() == 600_000


FINE = """
import resource, sys
import numpy as np
from dreamjax.export.extract import extract_mesh
from dreamjax.export.surface import Surface
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def density(points):
    return 100.0 * (np.linalg.norm(points, axis=-1) < 0.6).astype(np.float32)
mesh = extract_mesh(density, lambda p: np.full_like(p, 0.5), 1.0, Surface(resolution=512))
assert 1000 < len(mesh.faces) <= 40_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_512_points_a_side_take_less_than_two_gigabytes():
    done = subprocess.run([sys.executable, "-c", FINE], capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.splitlines()[-1])
    assert kilobytes < 1_900_000
