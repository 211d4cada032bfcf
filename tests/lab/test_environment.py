import os
import warnings

import jax
import pytest

from calcdl.lab import environment


@pytest.fixture(autouse=True)
def nothing_chosen():
    """Unlike the tests, a user has chosen no cache."""
    chosen = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", chosen)


def test_settings_hold_inside_and_only_there():
    before = dict(jax.config.values)
    for precision in ("float32", "float64"):
        with environment.settings(precision):
            assert jax.config.values["jax_enable_x64"] is (precision == "float64")
            assert jax.config.values["jax_default_matmul_precision"] == "highest"
            assert jax.config.values["jax_compilation_cache_dir"].endswith("calcdl/jax")
        assert dict(jax.config.values) == before
    with pytest.raises(KeyError), environment.settings("float32"):
        raise KeyError
    assert dict(jax.config.values) == before


def test_a_cache_that_cannot_be_used_is_no_error(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "file"))
    (place / "file").write_text("")
    assert environment.cache_directory() is None
    with environment.settings("float32"), warnings.catch_warnings():
        warnings.warn("Error writing persistent compilation cache entry for 'x': disk full", stacklevel=1)


def test_the_users_choice_of_cache_stands(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert environment.cache_directory() == jax.config.values["jax_compilation_cache_dir"]


def test_a_description_is_plain_and_complete():
    found = environment.describe()
    assert found["packages"]["jax"] == jax.__version__
    assert found["device_count"] == len(jax.devices())
    assert all(version != "" for version in found["packages"].values())


def test_writable_looks_at_the_nearest_folder_there_is(place, monkeypatch):
    assert environment.writable(place / "a" / "b")
    (place / "file").write_text("")
    assert not environment.writable(place / "file" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not environment.writable(place)
