import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.adversarial import GAMES
from calcdl.optim import alternating, descent, extragradient, frozen
from calcdl.theory import dirac_gan, games, stability

SLOPES = {"saturating": 0.5, "non_saturating": 0.5, "wasserstein": 1.0}
REST = {"discriminator": jnp.zeros(()), "generator": jnp.zeros(())}
GRID = [(h, a) for h in (0.1, 0.7, 1.3) for a in (0.5, 1.0)]


def roots(*args, **kwargs):
    return np.sort_complex(np.linalg.eigvals(dirac_gan.companion(dirac_gan.recurrence(*args, **kwargs))))


def radius(*args, **kwargs):
    return float(np.abs(roots(*args, **kwargs)).max())


@pytest.mark.parametrize("name", GAMES)
def test_slopes_are_those_by_hand(name, truths):
    slope, bend = dirac_gan.logit_slopes(*GAMES[name], jnp.float64)
    assert float(slope) == pytest.approx(SLOPES[name], rel=1e-14)
    assert float(bend) == pytest.approx(0 if name == "wasserstein" else 0.5, abs=1e-14)
    if name in ("saturating", "non_saturating"):
        row = next(row for row in truths("dl_theory.json")["gan"]["gen_gradient"] if row["D_logit"] == 0)
        assert float(slope) == pytest.approx(abs(row[name.replace("_", "")]), rel=1e-12)


def field_at_rest(noise, penalty):
    own = dirac_gan.losses(*GAMES["saturating"], noise)
    damped = lambda p: own["discriminator"](p) + penalty / 2 * p["discriminator"] ** 2  # noqa: E731
    jacobian = jax.jit(jax.jacfwd(games.field({**own, "discriminator": damped})))(REST)
    return np.array([[float(jacobian[row][column]) for column in sorted(REST)] for row in sorted(REST)])


@pytest.mark.parametrize("damping", [0.0, 0.3, 2.0])
def test_the_flow_has_the_eigenvalues_of_the_fields_jacobian(damping):
    wanted = np.sort_complex(np.asarray(dirac_gan.flow_eigenvalues(0.5, damping)))
    by_penalty = field_at_rest(jnp.zeros(1), damping)
    by_noise = field_at_rest(jnp.sqrt(2 * damping) * jnp.array([-1.0, 1.0]), 0.0)
    for jacobian in (by_penalty, by_noise):
        np.testing.assert_allclose(np.sort_complex(np.linalg.eigvals(jacobian)), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda rate: descent("sgd", rate), {}),
        (lambda rate: descent("momentum", rate, momentum=0.4), {"momentum": 0.4}),
        (lambda rate: descent("optimistic_gradient_descent", rate), {"optimism": 1.0}),
        (extragradient, {"look_ahead": True}),
    ],
    ids=["descent", "momentum", "optimistic", "extragradient"],
)
@pytest.mark.parametrize("turns", dirac_gan.TURNS)
def test_the_polynomial_is_that_of_the_solvers_own_step(make, told, turns):
    own, rate, damping = dirac_gan.losses(*GAMES["wasserstein"], jnp.zeros(1)), 0.4, (0.2, 0.5)
    added = dict(zip(("generator", "discriminator"), damping, strict=True))
    losses = {name: lambda p, n=name: own[n](p) + added[n] / 2 * p[n] ** 2 for name in own}
    game, solver = games.as_objective(losses), make(rate)
    if turns == "alternating":
        solver = alternating(frozen(solver, ["generator"]), frozen(solver, ["discriminator"]))

    @jax.jit
    def at_rest():
        settled = solver.step(game, REST, solver.init(REST))[:2]
        return games.step_matrix(lambda params, state: solver.step(game, params, state)[:2], *settled)

    matrix = np.asarray(at_rest())
    wanted = roots(turns, rate, 1.0, damping, **told)
    found = np.linalg.eigvals(np.pad(matrix, (0, 4 - len(matrix))))
    np.testing.assert_allclose(np.poly(found), np.poly(wanted), atol=1e-12)


@pytest.mark.parametrize(("h", "a"), GRID)
def test_moduli_by_hand(h, a):
    s = h * a
    assert radius("simultaneous", h, a) == pytest.approx(np.sqrt(1 + s**2), rel=1e-12)
    assert radius("alternating", h, a) == pytest.approx(1, rel=1e-7)
    assert radius("simultaneous", h, a, look_ahead=True) == pytest.approx(np.sqrt(1 - s**2 + s**4), rel=1e-9)
    assert radius("alternating", h, a, look_ahead=True) == pytest.approx(1, rel=1e-7)
    optimistic = 0.5 + np.sqrt(0.25 - s**2) if s <= 0.5 else 0.25 + (s + np.sqrt(s**2 - 0.25)) ** 2
    assert radius("simultaneous", h, a, optimism=1.0) == pytest.approx(np.sqrt(optimistic), rel=1e-7)
    # Gidel et al. 2019: momentum of either sign does not save moves at once; in turn a negative one does.
    assert radius("simultaneous", h, a, momentum=-0.5) > 1
    quartic = np.polyadd(np.poly([1, 1, -0.5, -0.5]), [s**2, 0, 0, 0])
    assert radius("alternating", h, a, momentum=-0.5) == pytest.approx(np.abs(np.roots(quartic)).max(), rel=1e-9)


def test_the_optimistic_gradient_arrives_below_one_over_the_root_of_three():
    border = 1 / np.sqrt(3)
    assert radius("simultaneous", border - 1e-6, 1.0, optimism=1.0) < 1
    assert radius("simultaneous", border + 1e-6, 1.0, optimism=1.0) > 1


@pytest.mark.parametrize("turns", dirac_gan.TURNS)
@pytest.mark.parametrize("h", [0.3, 1.0, 3.0])
def test_the_spectral_radius_is_one_at_the_ends_of_the_range(turns, h):
    for end, inwards in zip(dirac_gan.penalty_range(turns, h, 0.5), (1e-6, -1e-6), strict=True):
        inside, outside = (float(end) + step for step in (inwards, -inwards))
        assert radius(turns, h, 0.5, (0.0, inside)) < 1 < radius(turns, h, 0.5, (0.0, outside))
    lower, upper = dirac_gan.penalty_range(turns, 4.001, 0.5)
    assert upper < lower


def test_the_non_saturating_game_obeys_its_law():
    h, r = 0.1, 0.8
    for turns in dirac_gan.TURNS:
        theta, psi, sizes = r * np.cos(1.0), r * np.sin(1.0), []
        for _ in range(1500):
            sizes.append(np.hypot(theta, psi))
            moved = psi - h * theta / (1 + np.exp(-theta * psi))
            seen = moved if turns == "alternating" else psi
            theta, psi = theta + h * seen / (1 + np.exp(theta * seen)), moved
        law = np.asarray(dirac_gan.non_saturating_distance(turns, h, r, np.arange(1500.0)))
        np.testing.assert_allclose(np.array(sizes)[200:], law[200:], rtol=0.03)
    assert float(dirac_gan.non_saturating_distance("simultaneous", h, r, 1e6)) == pytest.approx(np.sqrt(2 * h))


def test_an_unknown_order_of_turns_is_refused():
    for call in (lambda: dirac_gan.recurrence("both", 0.1, 1.0), lambda: dirac_gan.penalty_range("both", 0.1, 1.0),
                 lambda: dirac_gan.non_saturating_distance("both", 0.1, 1.0, 3)):  # fmt: skip
        with pytest.raises(ValueError, match="turns: expected one of simultaneous, alternating, got 'both'"):
            call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_numbers_keep_their_dtype_under_transformations(dtype):
    rates = jnp.asarray([0.1, 0.5], dtype)
    found = jax.jit(jax.vmap(lambda h: dirac_gan.recurrence("alternating", h, 0.5, (0.0, 0.2))))(rates)
    assert (found.dtype, found.shape) == (dtype, (2, 5))
    radii = jax.vmap(lambda p: stability.spectral_radius(dirac_gan.companion(p)))(found)
    assert np.asarray(radii) == pytest.approx(np.sqrt(1 - 0.2 * np.array([0.1, 0.5])), rel=1e-5)
    slope = jax.jit(jax.grad(lambda h: dirac_gan.recurrence("simultaneous", h, 0.5)[2]))(dtype(0.4))
    assert float(slope) == pytest.approx(2 * 0.4 * 0.25, rel=1e-5)
    assert dirac_gan.flow_eigenvalues(dtype(0.5), dtype(0.6)).real.dtype == dtype
    assert dirac_gan.penalty_range("simultaneous", dtype(0.5), dtype(1.0))[0].dtype == dtype
    assert dirac_gan.non_saturating_distance("alternating", dtype(0.5), dtype(1.0), jnp.arange(3)).dtype == dtype
