"""Where compiled programs are kept."""

import os
import subprocess
import sys

import pytest

from dreamjax.training.compilation import keep_compiled

NAME = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def environ(monkeypatch, tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", environ)
    return environ


def test_the_users_cache_is_used_and_is_one_place(environ, tmp_path):
    keep_compiled()
    first = environ[NAME]
    assert first.startswith(str(tmp_path / "dreamjax" / "compiled-")) and os.path.isdir(first)
    del environ[NAME]
    keep_compiled()
    assert environ[NAME] == first


def test_what_the_user_chose_stays(environ):
    environ[NAME] = "/chosen"
    keep_compiled()
    assert environ[NAME] == "/chosen"


def test_no_place_for_it_is_no_error(environ, tmp_path):
    (tmp_path / "file").write_text("")
    environ["XDG_CACHE_HOME"] = str(tmp_path / "file")
    keep_compiled()
    assert NAME not in environ


COMPILE = """
from dreamjax.training.compilation import keep_compiled
keep_compiled()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
print([float(jax.jit(f)(2.0)) for f in (lambda x: x * x, lambda x: x + 1, lambda x: 1 / x)])
"""


def test_a_damaged_entry_is_one_line_once(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != NAME}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == "[4.0, 3.0, 0.5]", done.stderr
        return done.stderr.splitlines()

    assert run() == []
    entries = [p for p in tmp_path.rglob("*") if p.is_file() and p.name.endswith("-cache")]
    assert len(entries) >= 3
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-20])
    lines = run()
    assert len(lines) == 1 and "damaged" in lines[0] and str(tmp_path) in lines[0]
    assert run() == []
