import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.activations import ACTIVATIONS
from calcdl.theory import meanfield
from calcdl.theory.correlations import correlation_map
from calcdl.theory.phases import (
    AT_LENGTH,
    AT_ZERO,
    CHAOTIC,
    CRITICAL,
    EDGES,
    EVERYWHERE,
    NOWHERE,
    ORDERED,
    PHASES,
    edge_of_chaos,
    phase,
)

FUNCTIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "linear": lambda x: x, "erf": jax.lax.erf}
FIELDS = {"chi1": 1e-9, "chi_q": 1e-9, "c_star": 1e-9, "chi_c": 1e-9, "xi_q": 1e-7, "xi_c": 1e-7, "xi_grad": 1e-7}


def zoo(index, names):
    """Several activations in one program: that of the number `index`."""
    branches = [FUNCTIONS.get(name) or ACTIVATIONS[name].function for name in names]
    return lambda x: jax.lax.switch(index, branches, x)


@pytest.fixture(scope="module")
def phase_of():
    """The phase of any activation in the truths, in one program."""
    names = ("linear", "tanh", "relu", "selu", "softplus")

    look = jax.jit(lambda index, *variances: phase(zoo(index, names), *variances))
    return lambda name, *variances: look(names.index(name), *map(float, variances)) if name in names else None


def test_points_of_the_phase_diagram(truths, phase_of):
    for point in truths("signal_propagation.json")["points"]:
        found = phase_of(point["phi"], point["sw2"], point["sb2"])._asdict()
        assert PHASES[found["kind"]].startswith(point["phase"]), point
        for field, tolerance in FIELDS.items():
            value = found["xi_gradient" if field == "xi_grad" else field]
            if point[field] is not None:
                assert value == pytest.approx(point[field], rel=tolerance, abs=1e-12), (field, point)
            elif field.startswith("xi") and (field != "xi_c" or point["q_star"] is not None):
                assert value == math.inf, (field, point)
            else:
                assert jnp.isnan(value), (field, point)
        q = {"any": 1.0, None: math.inf}.get(point["q_star"], point["q_star"])
        assert found["q"] == pytest.approx(q, rel=1e-9), point


def test_the_table_of_initialisations(truths, phase_of):
    variances = {"LeCun/Glorot (sw2=1)": 1.0, "He (sw2=2)": 2.0}
    for row in truths("dl_theory.json")["init_table"]:
        found = phase_of(row["phi"], variances[row["init"]], 0)
        if found is None:  # see test_meanfield
            continue
        assert found.chi1 == pytest.approx(row["chi1"], rel=1e-9), row
        kind = CRITICAL if row["chi1"] == 1 else ORDERED if row["chi1"] < 1 else CHAOTIC
        assert found.kind == kind, row
        if row["layers_to_lose_1e6"] is not None:
            # The norm loses 1e6 where its square loses 1e12.
            assert found.xi_gradient * math.log(1e12) == pytest.approx(row["layers_to_lose_1e6"], rel=1e-7), row


EDGY = ("tanh", "erf", "relu", "sigmoid", "hard_sigmoid")


@pytest.fixture(scope="module")
def edge_of():
    """The edge of several activations, its derivative by the bias variance, and a look at its surroundings."""

    @jax.jit
    def look(index, bias_variance):
        function = zoo(index, EDGY)
        edge, slope = jax.jvp(
            lambda biases: edge_of_chaos(function, biases), (bias_variance,), (jnp.ones_like(bias_variance),)
        )
        chi = meanfield.chi1(function, edge.q, edge.weight_variance)
        length = meanfield.length_map(function, edge.q, edge.weight_variance, bias_variance)
        small = jnp.asarray([1e-6, 4e-6])
        mapped = jax.lax.map(
            lambda x: correlation_map(function, 1 - x, edge.q, edge.weight_variance, bias_variance), small
        )
        return edge, slope.weight_variance, chi, length, 1 - (1 - mapped) / small

    return lambda name, bias_variance: look(EDGY.index(name), float(bias_variance))


def test_edge_of_chaos(truths, edge_of):
    for value in truths("signal_propagation.json")["edge_of_chaos"]["values"]:
        edge = edge_of(value["phi"], value["sb2"])[0]
        assert edge.weight_variance == pytest.approx(value["sw2"], rel=1e-9)
        assert edge.q == pytest.approx(value["q_star"], rel=1e-9)
        assert edge.kind == (AT_LENGTH if value["sb2"] else AT_ZERO)
        assert edge.beta == pytest.approx(value.get("beta_1mc", math.inf), rel=1e-9)
        assert edge.power == 1
    # By implicit differentiation of B(q) = b: dσ_w²/db from two edges, to second order.
    edge, slope, *_ = edge_of("tanh", 0.05)
    assert edge.verdict == EDGES[AT_LENGTH]
    ends = [edge_of("tanh", 0.05 + move)[0].weight_variance for move in (-1e-4, 1e-4)]
    assert slope == pytest.approx(float(ends[1] - ends[0]) / 2e-4, rel=1e-5)


def test_edges_of_relu(edge_of):
    edge = edge_of("relu", 0)[0]
    assert (edge.kind, edge.q, edge.power) == (EVERYWHERE, 1, 2)
    assert edge.weight_variance == pytest.approx(2, rel=1e-13)
    assert edge.beta == pytest.approx(9 * math.pi**2 / 2, rel=1e-9)  # the note in signal_propagation.json
    nowhere = edge_of("relu", 0.1)[0]
    assert nowhere.kind == NOWHERE
    assert np.all(np.isnan(nowhere[:5]))


def test_the_edge_is_critical_and_correlations_creep(edge_of):
    """For smooth and kinked activations alike: phase, slope of lengths, and the first term of 1 - C."""
    for name in ("sigmoid", "hard_sigmoid"):
        edge, _, chi, length, creep = edge_of(name, 0.05)
        assert edge.kind == AT_LENGTH
        assert chi == pytest.approx(1, rel=1e-12), name
        assert length == pytest.approx(float(edge.q), rel=1e-12), name
        # (1 - c)^(1 / power), with 1 - c_l ~ beta / l^power: dx/dl = -x / beta or, for power 2, -2 x^(3/2) / sqrt(beta)
        root = np.array([1e-3, 2e-3])
        expected = root**2 / edge.beta if edge.power == 1 else 2 * root / np.sqrt(edge.beta)
        assert edge.power == (2 if name == "hard_sigmoid" else 1)
        np.testing.assert_allclose(creep, expected, rtol=0.02, err_msg=name)


def test_many_at_once_in_float32():
    variances = jnp.asarray([0.5, 1.0, 2.0, 2.5], jnp.float32)
    found = jax.jit(jax.vmap(lambda w: phase(jax.nn.relu, w)))(variances)
    assert found.kind.tolist() == [ORDERED, ORDERED, CRITICAL, CHAOTIC]
    assert {number.dtype for number in found[:-1]} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.chi1, variances / 2, rtol=1e-5)
    edge = edge_of_chaos(jnp.tanh, np.float32(0.05))
    assert {number.dtype for number in edge[:-1]} == {jnp.dtype("float32")}
    assert edge.weight_variance == pytest.approx(1.76095464, rel=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="weight_variance must be finite and at least 0, got -1"):
        phase(jnp.tanh, -1.0)
    with pytest.raises(ValueError, match="bias_variance must be finite and at least 0, got inf"):
        edge_of_chaos(jnp.tanh, math.inf)
