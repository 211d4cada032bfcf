import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.calculus.expressions import parse
from calcdl.experiments.chain_rule import (
    EXPERIMENT,
    Config,
    branch,
    check,
    difference,
    follow,
    log_moments,
    measure,
    multiply,
    read,
    repeat,
    show,
    unstack,
)
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError
from calcdl.lab.config import read as read_file


@pytest.fixture(scope="module")
def config(configs):
    return read_file(configs / "chain_rule.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read_file(configs / "chain_rule.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 7
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "6 paths at 9 points" in verdicts[1].evidence
    assert "0.5^8 = 0.0039" in verdicts[3].evidence
    assert "16: 4,352 and 512" in verdicts[6].evidence


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("composition_derivative", lambda x: x.where(x.composition_way != "forward", x * (1 + 1e-5)), "either order"),
        ("composition_derivative", lambda x: x.where(x.composition_way != "backward"), "either order"),
        ("graph_total", lambda x: x.where(x.graph_way != "paths", x + 1e-3), "the sum over paths"),
        ("graph_total", lambda x: x.where(x.graph_way != "tangents", x + 1e-3), "the sum over paths"),
        ("network_error", lambda x: x + 1.1e-6, "back-propagation"),
        ("network_error", lambda x: x * np.nan, "back-propagation"),
        ("chains_product", lambda x: x.where(x.chains_kind != "g x", x * 1.0001), "L equal factors"),
        ("chains_product", lambda x: x.where(x.chains_kind == "g x", 1.0), "tanh"),
        ("matrices_product", lambda x: x * 100, "random matrices"),
        ("matrices_product", lambda x: x.where(x.matrices_seed != 1), "random matrices"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, claim):
    verdicts = check(config, results.assign({name: change(results[name])}))
    assert [verdict.claim for verdict in verdicts if not verdict.holds and claim in verdict.claim]
    assert sum(not verdict.holds for verdict in verdicts) == 1


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["graph", "depth", "composition", "layers"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())
    words = " ".join(text.get_text() for text in figures["graph"].axes[0].texts)
    assert "du/da = 10.34" in words
    assert "a → x → u:  2 · 2 = 4" in words
    titles = [axes.get_title(loc="left") for axes in figures["depth"].axes]
    assert titles == ["links g x", "random matrices, 2 x 2", "links tanh(g x)"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_composition_has_the_factors_of_the_book(key, dtype):
    links = tuple(parse(text) for text in ("sin(x)", "x**2 + 1"))
    found = follow(key, x=jnp.asarray(0.7, dtype), links=links)
    assert {one.dtype for one in found.values()} == {jnp.dtype(dtype)}
    exact = 1e-6 if dtype == "float32" else 1e-14
    sine, cosine = math.sin(0.7), math.cos(0.7)
    assert found["local"].tolist() == pytest.approx([cosine, 2 * sine], rel=exact)
    assert found["forward"].tolist() == pytest.approx([cosine, 2 * sine * cosine], rel=exact)
    assert found["backward"].tolist() == pytest.approx([2 * sine * cosine, 2 * sine], rel=exact)
    assert found["derivative"].tolist() == pytest.approx([math.sin(1.4)] * 3, rel=exact)


def test_a_graph_has_the_partial_derivatives_of_the_book(key):
    config = Config()
    _, nodes, names = read(config)
    found = branch(key, spread=jnp.asarray(0.0), nodes=nodes, at=config.graph.at)
    a, b = config.graph.at
    x, y, z, slope = a**2 + b, a * b, math.exp(a - b), math.cos(math.exp(a - b))
    by_a, by_b = y * 2 * a + x * b + slope * z, y + x * a - slope * z
    assert names["input"] == ["a", "b"]
    assert np.asarray(found["total"]) == pytest.approx(np.array([[by_a, by_b]] * 4), rel=1e-14)
    products = dict(zip(names["path"], found["product"].tolist(), strict=True))
    assert products["b → z → u"] == pytest.approx(-slope * z, rel=1e-14)
    assert dict(zip(names["edge"], found["partial"].tolist(), strict=True))["x → u"] == pytest.approx(y)


def test_equal_factors_are_powers(key):
    found = repeat(key, factor=jnp.asarray(1.5), kind="g x", depth=5)
    assert found["product"].tolist() == pytest.approx([1.5**number for number in range(1, 6)], rel=1e-15)


def test_random_matrices_add_what_theory_says(key):
    run = jax.jit(jax.vmap(lambda one: multiply(one, factor=jnp.asarray(1.0), width=3, depth=1)["product"]))
    logs = np.log(run(jax.random.split(key, 20_000)))
    added = np.diff(logs, axis=1, prepend=0.0)
    mean, variance = log_moments(3)
    assert added.mean(axis=0) == pytest.approx(mean, abs=4.5 * math.sqrt(variance / 20_000))
    assert added.var(axis=0) == pytest.approx(variance, rel=0.05)


def test_one_random_number_adds_the_mean_log_of_a_normal_one():
    euler = 0.5772156649015329
    assert log_moments(1) == pytest.approx((-(euler + math.log(2)) / 2, math.pi**2 / 8), rel=1e-6)
    assert log_moments(2) == pytest.approx((-euler / 2, math.pi**2 / 24), rel=1e-6)


def test_differences_are_relative_to_what_examples_add():
    hand, whole = ({"weight": jnp.array([[value]]), "bias": jnp.array([0.0])} for value in (1e-3, 3e-3))
    before, delta = jnp.array([[2.0], [2.0]]), jnp.array([[1.0], [-1.0]])
    assert float(difference(hand, whole, before, delta)) == pytest.approx(1e-3)
    assert float(difference(hand, whole, 0 * before, 0 * delta)) == pytest.approx(2e-3)


def test_layers_of_a_stack_are_listed_in_order():
    layer = {"weight": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    hidden = {"weight": jnp.arange(8.0).reshape(2, 2, 2), "bias": jnp.arange(4.0).reshape(2, 2)}
    found = unstack({"first": layer, "hidden": hidden, "readout": layer})
    assert len(found) == 4
    assert found[2]["weight"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert found[2]["bias"].tolist() == [2.0, 3.0]


def test_the_parts_of_a_factor_multiply_to_it(results):
    network = study.part(results, "network")
    product = network.weight_factors * network.slope_factors
    assert product.values == pytest.approx(network.ratios.values, rel=1e-5)
    assert (network.slope_factors <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"composition": {"links": ("3x",)}}, r"composition.links: .*write 3\*x"),
        ({"composition": {"links": ("y",)}}, "composition.links"),
        ({"graph": {"nodes": ("u = x +",)}}, "graph.nodes"),
        ({"graph": {"nodes": ("u = v + a", "v = u"), "at": (1.0,)}}, "graph.nodes: .*cycle"),
        ({"graph": {"at": (1.0,)}}, r"graph.at: got 1 value\(s\); expected one for each of a, b"),
        ({"chains": {"factors": (2.0,)}}, "factors"),
        ({"chains": {"widths": (1,)}}, "widths"),
        ({"network": {"activations": ("prelu",)}}, "activations"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        measure(Config.model_validate(change), run=pytest.fail)


def test_a_dry_run_compiles_nothing(configs, capsys, tmp_path):
    file = str(configs / "chain_rule.toml")
    assert main(EXPERIMENT, [file, "--dry-run", "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for line in ("composition: 241 lanes", "graph: 128 lanes", "network: 24 lanes", "matrices: 896 lanes"):
        assert f"study {line}" in told
    assert not list(tmp_path.iterdir())
