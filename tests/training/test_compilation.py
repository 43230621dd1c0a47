"""Where compiled programs are kept."""

import os

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
