import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.data import synthetic

MAKERS = {
    "line": synthetic.line,
    "sines": synthetic.sines,
    "spirals": synthetic.spirals,
    "mixture": synthetic.mixture,
    "teacher_student": synthetic.teacher_student,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_draws_are_pure_in_the_key_and_keep_the_dtype(key, name, dtype):
    make = MAKERS[name]
    features, targets = make(key, 40, noise=0.1, dtype=dtype)
    assert features.dtype == dtype
    assert targets.dtype == (jnp.int32 if name in ("spirals", "mixture") else dtype)
    assert features.shape[0] == targets.shape[0] == 40
    for one, other in zip((features, targets), make(key, 40, noise=0.1, dtype=dtype), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not jnp.array_equal(features, make(jax.random.key(1), 40, noise=0.1, dtype=dtype)[0])


@pytest.mark.parametrize("name", MAKERS)
def test_x64_changes_no_float32_draw(name):
    with jax.enable_x64(False):
        narrow = [np.asarray(part) for part in MAKERS[name](jax.random.key(7), 30, noise=0.2)]
    for one, other in zip(narrow, MAKERS[name](jax.random.key(7), 30, noise=0.2), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", MAKERS)
def test_noise_may_be_traced_and_keys_mapped(key, name):
    keys = jax.random.split(key, 3)
    lanes = jax.jit(jax.vmap(lambda key, noise: MAKERS[name](key, 20, noise=noise)))(keys, jnp.array([0.0, 0.1, 0.2]))
    alone = MAKERS[name](keys[1], 20, noise=0.1)
    for lane, one in zip(lanes, alone, strict=True):
        np.testing.assert_allclose(lane[1], one, rtol=1e-5, atol=1e-6)


def test_noise_has_the_given_spread(key):
    x, y = synthetic.line(key, 4000, slope=-3.0, intercept=0.5, noise=0.2, dtype=jnp.float64)
    residual = np.asarray(y + 3 * x[:, 0] - 0.5)
    standard_error = 0.2 / np.sqrt(2 * 4000)
    assert abs(residual.std() - 0.2) < 4 * standard_error
    assert abs(float(jnp.mean(x))) < 4 / np.sqrt(4000)


def test_spirals_wind_and_interleave(key):
    points, labels = synthetic.spirals(key, 300, classes=3, turns=1.5, dtype=jnp.float64)
    radius = jnp.linalg.norm(points, axis=1)
    angle = jnp.arctan2(points[:, 1], points[:, 0])
    unwound = angle - 2 * jnp.pi * (1.5 * radius + labels / 3)
    np.testing.assert_allclose(jnp.cos(unwound), 1, atol=1e-9)
    assert jnp.bincount(labels, length=3).tolist() == [100, 100, 100]
    # r^2 is uniform: mean 1/2, variance 1/12.
    assert abs(float(jnp.mean(radius**2)) - 0.5) < 4 * np.sqrt(1 / (12 * 300))


@pytest.mark.parametrize("layout", synthetic.LAYOUTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_centres_are_even_and_of_the_given_size(layout, dtype):
    places = synthetic.centres(layout, 9, 2.0, dtype)
    assert places.shape == (9, 2)
    assert places.dtype == dtype
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-6)
    away = np.linalg.norm(np.asarray(places), axis=1) if layout == "ring" else np.abs(places).max()
    np.testing.assert_allclose(away, 2, rtol=1e-6)
    gaps = np.linalg.norm(np.asarray(places)[:, None] - np.asarray(places)[None], axis=-1) + 9 * np.eye(9)
    np.testing.assert_allclose(gaps.min(axis=1), 4 * np.sin(np.pi / 9) if layout == "ring" else 2, rtol=1e-5)


def test_every_mode_has_its_share_and_spread(key):
    points, labels = synthetic.mixture(key, 4000, "grid", 4, 3.0, noise=0.2, dtype=jnp.float64)
    counts = np.bincount(labels, minlength=4)
    assert (abs(counts - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)).all()
    residual = np.asarray(points - synthetic.centres("grid", 4, 3.0, jnp.float64)[labels])
    assert abs(residual.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * 8000)


def test_one_teacher_answers_any_number_of_rows(key):
    x, y = synthetic.teacher_student(key, 200, features=3, hidden=2, dtype=jnp.float64)
    # The answers are bounded by the sum of the output weights: the hidden units saturate.
    assert float(jnp.std(y)) > 0.05
    again, answers = synthetic.teacher_student(key, 200, features=3, hidden=2, noise=0.0, dtype=jnp.float64)
    np.testing.assert_array_equal(answers, y)
    np.testing.assert_array_equal(again, x)


def test_impossible_requests_are_refused(key):
    with pytest.raises(ValueError, match="classes: expected at least 2, got 1"):
        synthetic.spirals(key, 5, classes=1)
    with pytest.raises(ValueError, match="frequencies: expected at least one"):
        synthetic.sines(key, 5, frequencies=())
    with pytest.raises(ValueError, match="layout: expected one of ring, grid, got 'line'"):
        synthetic.mixture(key, 5, "line")
    with pytest.raises(ValueError, match="modes: expected a square number for a grid, got 8"):
        synthetic.mixture(key, 5, "grid", 8)
    with pytest.raises(ValueError, match="modes: expected at least 2, got 1"):
        synthetic.centres("ring", 1)
