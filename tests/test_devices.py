"""The warning that JAX runs on the CPU beside a plugin that goes unused."""

from importlib import metadata

import jax
import pytest

from dreamjax.devices import PLUGINS, warn_of_unused_plugin


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Puts a distribution of a name and a version, with nothing in it, on the path."""
    if jax.default_backend() != "cpu":
        pytest.skip("the tests run on an accelerator")
    if {d.name for d in metadata.distributions()} & set(PLUGINS):
        pytest.skip("this machine has a plugin of its own")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, version):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return write


def test_a_plugin_of_another_version_is_named_with_its_cure(install, capsys):
    install("jax-cuda12-plugin", "0.7.2.post9")
    warn_of_unused_plugin()
    (line,) = capsys.readouterr().err.splitlines()
    jaxlib = metadata.version("jaxlib")
    assert "jax-cuda12-plugin 0.7.2.post9" in line and f"does not fit jaxlib {jaxlib}" in line
    assert f"pip install 'jax[cuda12]=={jaxlib}'" in line


@pytest.mark.parametrize("name", ["jax-cuda13-plugin", "libtpu"])
def test_a_plugin_that_fits_is_named(install, capsys, name):
    install(name, metadata.version("jaxlib"))
    warn_of_unused_plugin()
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and "does not fit" not in line


@pytest.mark.parametrize("platforms, lines", [("", 1), ("tpu,cpu", 1), ("cpu", 0), ("CPU,tpu", 0)])
def test_the_cpu_is_no_surprise_where_it_was_asked_for(
    install, capsys, monkeypatch, platforms, lines
):
    install("libtpu", "0.0.30")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    warn_of_unused_plugin()
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_silent_without_a_plugin(install, capsys):
    warn_of_unused_plugin()
    assert not capsys.readouterr().err
