from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.adversarial import GAMES, PENALTIES, between, game, sliced_wasserstein, slope_penalty

DTYPES = [jnp.float32, jnp.float64]


def cubic(params, x):
    return params["scale"] * jnp.sum(x**3, axis=1) + params["shift"]


def moved(params, z):
    return z + params["place"][None, :]


@pytest.fixture
def players(key):
    keys = jax.random.split(key, 2)
    params = {
        "discriminator": {"scale": jnp.float64(0.7), "shift": jnp.float64(-0.2)},
        "generator": {"place": jnp.array([0.3, -0.5])},
    }
    return params, jax.random.normal(keys[0], (5, 2)), jax.random.normal(keys[1], (7, 2))


def test_slopes_of_the_generator_are_those_on_record(truths):
    rows = truths("dl_theory.json")["gan"]["gen_gradient"]
    assert len(rows) == 5
    for row in rows:
        logit = jnp.float64(row["D_logit"])
        saturating, alive = (jax.grad(GAMES[name].generator)(logit) for name in ("saturating", "non_saturating"))
        assert float(saturating) == pytest.approx(row["saturating"], rel=1e-9)
        assert float(alive) == pytest.approx(row["nonsaturating"], rel=1e-9)
        assert float(alive / saturating) == pytest.approx(row["ratio_ns_over_s"], rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GAMES)
def test_losses_and_slopes_stay_finite_where_the_discriminator_is_sure(name, dtype):
    logits = jnp.array([-200.0, -30.0, 0.0, 30.0, 200.0], dtype)
    for loss in GAMES[name]:
        slopes = jax.jit(jax.vmap(jax.grad(loss)))(logits)
        assert loss(logits).dtype == slopes.dtype == dtype
        assert np.isfinite(loss(logits)).all()
        assert (np.abs(slopes) <= 1).all()
    assert (jax.vmap(jax.grad(GAMES[name].real))(logits) <= 0).all()
    assert (jax.vmap(jax.grad(GAMES[name].fake))(logits) >= 0).all()
    assert (jax.vmap(jax.grad(GAMES[name].generator))(logits) <= 0).all()


def test_the_saturating_game_is_zero_sum():
    logits = jnp.linspace(-5.0, 5.0, 11)
    for name in ("saturating", "wasserstein"):
        np.testing.assert_allclose(GAMES[name].generator(logits), -GAMES[name].fake(logits), rtol=1e-12)


@pytest.mark.parametrize("name", GAMES)
def test_each_player_sees_the_gradient_of_its_own_loss(name, players):
    params, x, z = players
    rules = GAMES[name]
    found = jax.grad(lambda p: game(rules, cubic, moved, p, x, z))(params)

    def of_discriminator(own):
        made = moved(params["generator"], z)
        return rules.real(cubic(own, x)).mean() + rules.fake(cubic(own, made)).mean()

    def of_generator(own):
        return rules.generator(cubic(params["discriminator"], moved(own, z))).mean()

    expected = {
        "discriminator": jax.grad(of_discriminator)(params["discriminator"]),
        "generator": jax.grad(of_generator)(params["generator"]),
    }
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), found, expected)


def test_the_best_discriminator_has_the_value_of_the_divergence():
    p, q = jnp.array([0.5, 0.3, 0.2, 0.0]), jnp.array([0.1, 0.1, 0.4, 0.4])
    best = jnp.log(jnp.where(p > 0, p, 1e-300)) - jnp.log(q)
    value = -jnp.sum(p * GAMES["saturating"].real(best) + q * GAMES["saturating"].fake(best))
    m = (p + q) / 2
    divergence = (jax.scipy.special.rel_entr(p, m) + jax.scipy.special.rel_entr(q, m)).sum() / 2
    assert float(value) == pytest.approx(-np.log(4) + 2 * float(divergence), rel=1e-12)


def test_points_between_lie_on_the_line(key):
    real, fake = jnp.ones((4, 2, 3)), jnp.zeros((4, 2, 3))
    share = jax.random.uniform(key, (4,))
    np.testing.assert_allclose(between(real, fake, share), share[:, None, None] * jnp.ones((4, 2, 3)))
    with pytest.raises(ValueError, match=r"got the shapes \(4, 2, 3\), \(3, 2, 3\) and \(4,\)"):
        between(real, fake[:3], share)
    with pytest.raises(ValueError, match="a share for each"):
        between(real, fake, share[:3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_the_penalty_is_that_of_the_closed_form_and_so_is_its_gradient(dtype, slope):
    x = jnp.array([[1.0, 2.0], [0.5, -1.0]], dtype)

    def penalty(scale):
        return slope_penalty(lambda rows: scale * jnp.sum(rows**2, axis=1) / 2, x, slope)

    length = np.linalg.norm(np.asarray(x), axis=1)
    found, gradient = jax.jit(jax.value_and_grad(penalty))(jnp.asarray(3.0, dtype))
    assert found.dtype == dtype
    assert float(found) == pytest.approx(np.mean((3 * length - slope) ** 2), rel=1e-5)
    assert float(gradient) == pytest.approx(np.mean(2 * (3 * length - slope) * length), rel=1e-5)


def test_where_the_discriminator_is_flat_the_penalty_has_a_gradient():
    found, gradient = jax.value_and_grad(lambda scale: slope_penalty(lambda x: scale * x[:, 0], jnp.ones((2, 2)), 1.0))(
        jnp.float64(0.0)
    )
    assert float(found) == 1.0
    assert np.isfinite(gradient)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_by_name_look_where_they_should(name):
    real, fake, share = jnp.full((3, 1), 2.0), jnp.full((3, 1), 4.0), jnp.full(3, 0.25)
    found = PENALTIES[name](lambda x: jnp.sum(x**2, axis=1), real, fake, share)
    # The slope at x is 2 x; a quarter of the way from the generated row to the real one lies 3.5.
    assert float(found) == pytest.approx({"none": 0.0, "r1": 4.0**2, "gradient_penalty": (7.0 - 1.0) ** 2}[name])


def test_sliced_distance_is_that_of_moved_and_stretched_samples(key):
    x = jax.random.normal(key, (50, 2))
    angle = jnp.linspace(0, jnp.pi, 200, endpoint=False)
    directions = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    apart = sliced_wasserstein(x, jax.random.permutation(key, x) + jnp.array([[3.0, 4.0]]), directions)
    # The mean of |cos| is 2/π: the sliced distance of a shift is that part of its length.
    assert float(apart) == pytest.approx(5 * 2 / np.pi, rel=1e-3)
    assert float(sliced_wasserstein(x, x[::-1], directions)) == 0.0
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(x, x[:3], directions)
