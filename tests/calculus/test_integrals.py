"""Every integral of the truths and more, in one program for each kind of range: the integrand is a branch of it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.integrals import STATUSES, integrate

INF, PI = math.inf, math.pi
# Almost all the time goes into compilation, and hardly any into the programs.
FAST = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    FAST["xla_cpu_use_fusion_emitters"] = False
CONVERGES, NOT_REACHED, CONDITIONAL, UNDECIDED, NOT_FINITE, OSCILLATES, DIVERGES = STATUSES


def sech(x):
    return 1 / jnp.cosh(x)


def gauss(x):
    return jnp.exp(-(x**2) / 2) / math.sqrt(2 * PI)


# By the name of the record; a name with "split" uses its breakpoints.
TRUTHS = {
    "kahaner_01": jnp.exp,
    "kahaner_02": lambda x: jnp.where(x < 0.3, 0.0, 1.0),
    "kahaner_03": jnp.sqrt,
    "kahaner_04": lambda x: 23 / 25 * jnp.cosh(x) - jnp.cos(x),
    "kahaner_05": lambda x: 1 / (x**4 + x**2 + 0.9),
    "kahaner_06": lambda x: x * jnp.sqrt(x),
    "kahaner_07": lambda x: 1 / jnp.sqrt(x),
    "kahaner_08": lambda x: 1 / (1 + x**4),
    "kahaner_09": lambda x: 2 / (2 + jnp.sin(10 * PI * x)),
    "kahaner_10": lambda x: 1 / (1 + x),
    "kahaner_11": lambda x: 1 / (jnp.exp(x) + 1),
    "kahaner_12": lambda x: x / (jnp.exp(x) - 1),
    "abs_third": lambda x: abs(x - 1 / 3),
    "runge": lambda x: 1 / (1 + 25 * x**2),
    "circle": lambda x: jnp.sqrt(1 - x**2),
    "trig_sq": lambda x: jnp.sin(x) ** 2,
    "gauss_line": lambda x: jnp.exp(-(x**2)),
    "lorentz": lambda x: 1 / (1 + x**2),
    "x2exp": lambda x: x**2 * jnp.exp(-x / 4),
    "inv_sq": lambda x: 1 / x**2,
    "gaussE_tanh2_s1.0": lambda x: gauss(x) * jnp.tanh(x) ** 2,
    "gaussE_dtanh2_s1.0": lambda x: gauss(x) * (1 - jnp.tanh(x) ** 2) ** 2,
    "inv_01": lambda x: 1 / x,
    "inv_pv": lambda x: 1 / x,
    "sin_inf": jnp.sin,
}
SPLIT = ("kahaner_02", "abs_third")
TRUTH_VERDICTS = {"inv_01": DIVERGES, "inv_pv": DIVERGES, "sin_inf": OSCILLATES}

# Integrand, limits, value, relative tolerance. Kahaner's, QUADPACK's and others' with closed forms.
MORE = {
    "kahaner 14": (lambda x: math.sqrt(50) * jnp.exp(-50 * PI * x**2), 0, 10, 0.5, 1e-12),
    "kahaner 15": (lambda x: 25 * jnp.exp(-25 * x), 0, 10, 1.0, 1e-12),
    "kahaner 16": (lambda x: 50 / (PI * (2500 * x**2 + 1)), 0, 10, math.atan(500) / PI, 1e-12),
    "kahaner 19": (jnp.log, 0, 1, -1.0, 1e-12),
    "kahaner 20": (lambda x: 1 / (x**2 + 1.005), -1, 1, 2 / math.sqrt(1.005) * math.atan(1 / math.sqrt(1.005)), 1e-12),
    # By 30 digits of mpmath.
    "kahaner 21": (lambda x: sech(10 * x - 2) ** 2 + sech(100 * x - 40) ** 4 + sech(1000 * x - 600) ** 6,
                   0, 1, 0.21080273550054927738, 1e-12),
    "power -0.9": (lambda x: x**-0.9, 0, 1, 10.0, 1e-8),
    "power -0.99": (lambda x: x**-0.99, 0, 1, 100.0, 1e-8),
    "power at the upper limit": (lambda x: (1 - x) ** -0.6, 0, 1, 2.5, 1e-8),
    "power log": (lambda x: -(x**-0.5) * jnp.log(x), 0, 1, 4.0, 1e-8),
    "cubic log": (lambda x: -(x**3) * jnp.log(x), 0, 1, 1 / 16, 1e-12),
    "log²": (lambda x: jnp.log(x) ** 2, 0, 1, 2.0, 1e-12),
    "log log": (lambda x: jnp.log(-jnp.log(x)), 0, 1, -0.57721566490153286061, 1e-8),
    "arcsine": (lambda x: 1 / jnp.sqrt(1 - x**2), -1, 1, PI, 1e-8),
    "inside, not told": (lambda x: abs(x - 1 / 3) ** -0.5, 0, 1, 2 * (math.sqrt(1 / 3) + math.sqrt(2 / 3)), 1e-8),
    "beta": (lambda x: x**-0.3 * (1 - x) ** -0.6, 0, 1, math.gamma(0.7) * math.gamma(0.4) / math.gamma(1.1), 1e-8),
    "cos 50": (lambda x: jnp.cos(50 * x), 0, 1, math.sin(50) / 50, 1e-12),
    "peak": (lambda x: 1 / (1 + (230 * x - 30) ** 2), 0, 1, (math.atan(200) + math.atan(30)) / 230, 1e-12),
    "catalan": (lambda x: jnp.log(x) / (1 + x**2), 0, 1, -0.91596559417721901505, 1e-12),
    "log cos": (lambda x: jnp.log(jnp.cos(x)), 0, PI / 2, -PI * math.log(2) / 2, 1e-12),
    "backwards": (jnp.exp, 1, 0, -math.expm1(1), 1e-12),
    "nothing": (lambda x: 0 * x, 0, 1, 0.0, 0),
    "tiny": (lambda x: 1e-200 * jnp.exp(x), 0, 1, 1e-200 * math.expm1(1), 1e-12),
    "wave towards 0": (lambda x: jnp.sin(1 / x), 0, 1, 0.50406706190692837199, 1e-8),  # sin 1 - Ci(1)
    "floor": (lambda x: jnp.floor(jnp.exp(x)), 0, 3, 60 - math.log(math.factorial(20)), 1e-3),
    "gamma 1/2": (lambda x: jnp.exp(-x) / jnp.sqrt(x), 0, INF, math.sqrt(PI), 1e-8),
    "planck": (lambda x: x**3 / jnp.expm1(x), 0, INF, PI**4 / 15, 1e-12),
    "damped": (lambda x: jnp.exp(-x) * jnp.sin(x), 0, INF, 0.5, 1e-12),
    "odd in log x": (lambda x: jnp.log(x) / (1 + 100 * x**2), 0, INF, -PI * math.log(10) / 20, 1e-12),
    "slow": (lambda x: x**-1.5, 1, INF, 2.0, 1e-8),
    "very slow": (lambda x: x**-1.001, 1, INF, 1000.0, 1e-3),
    "slower than any power": (lambda x: 1 / (x * jnp.log(x) ** 2), 2, INF, 1 / math.log(2), 0.1),
    "waves that converge": (lambda x: jnp.sin(x) / x**2, 1, INF, 0.50406706190692837199, 1e-8),
    "both ends": (lambda x: 1 / (jnp.sqrt(x) * (1 + x)), 0, INF, PI, 1e-8),
    "sech": (sech, -INF, INF, PI, 1e-12),
    "far away": (lambda x: jnp.exp(-((x - 30) ** 2) / 2), -INF, INF, math.sqrt(2 * PI), 1e-12),
    "narrow": (lambda x: jnp.exp(-5000 * (x - 3) ** 2), -INF, INF, math.sqrt(PI / 5000), 1e-12),
    "wide": (lambda x: jnp.exp(-((x / 1000) ** 2)), -INF, INF, 1000 * math.sqrt(PI), 1e-12),
}  # fmt: skip

# Integrand, limits, verdicts that are right, value if there is one.
VERDICTS = {
    "1/x": (lambda x: 1 / x, 0, 1, {DIVERGES}, INF),
    "1/x²": (lambda x: 1 / x**2, -1, 1, {DIVERGES}, INF),
    "pole at 1/3": (lambda x: 1 / (x - 1 / 3), 0, 1, {DIVERGES}, None),
    "pole at 1/π": (lambda x: 1 / (x - 1 / PI) ** 2, 0, 1, {DIVERGES}, INF),
    "two odd poles": (lambda x: 2 * x / (x**2 - 1 / 9), -1, 1, {DIVERGES}, None),
    "tan": (jnp.tan, 0, PI, {DIVERGES}, None),
    "pole at the upper limit": (lambda x: 1 / (x - 1), 0, 1, {DIVERGES}, -INF),
    "power -1.5": (lambda x: x**-1.5, 0, 1, {DIVERGES}, INF),
    "1/(x log x) at 0": (lambda x: 1 / (x * jnp.log(x)), 0, 0.5, {DIVERGES, UNDECIDED}, None),
    "sin(1/x)/x": (lambda x: jnp.sin(1 / x) / x, 0, 1, {CONDITIONAL}, 0.62471325642771360429),  # π/2 - Si(1)
    "half is missing": (jnp.sqrt, -1, 1, {NOT_FINITE}, None),
    "1/x to infinity": (lambda x: 1 / x, 1, INF, {DIVERGES}, INF),
    "1/√x to infinity": (lambda x: 1 / jnp.sqrt(x), 1, INF, {DIVERGES}, INF),
    "exp": (jnp.exp, 0, INF, {DIVERGES}, INF),
    "1/(x log x)": (lambda x: 1 / (x * jnp.log(x)), 2, INF, {DIVERGES, UNDECIDED}, None),
    "|sin x|/x": (lambda x: abs(jnp.sin(x)) / x, 1, INF, {DIVERGES, UNDECIDED}, None),
    "sin²": (lambda x: jnp.sin(x) ** 2, 0, INF, {DIVERGES}, INF),
    "x sin x": (lambda x: x * jnp.sin(x), 0, INF, {OSCILLATES}, None),
    "sinc": (lambda x: jnp.sinc(x / PI), 0, INF, {CONDITIONAL}, PI / 2),
    "fresnel": (lambda x: jnp.sin(x**2), 0, INF, {CONDITIONAL}, math.sqrt(PI / 8)),
    "cos/√x": (lambda x: jnp.cos(x) / jnp.sqrt(x), 0, INF, {CONDITIONAL}, math.sqrt(PI / 2)),
    "sin(3x)/x": (lambda x: jnp.sin(3 * x) / x, 0, INF, {CONDITIONAL}, PI / 2),
    "laplace": (lambda x: x * jnp.sin(x) / (1 + x**2), 0, INF, {CONDITIONAL}, PI / 2 / math.e),
    "x on the line": (lambda x: x, -INF, INF, {DIVERGES}, None),
    "principal value at infinity": (lambda x: x / (1 + x**2), -INF, INF, {DIVERGES}, None),
    "cos on the line": (jnp.cos, -INF, INF, {OSCILLATES}, None),
    "cos x²": (lambda x: jnp.cos(x**2), -INF, INF, {CONDITIONAL}, math.sqrt(PI / 2)),
}


class Case(NamedTuple):
    name: str
    f: object
    lower: float
    upper: float
    breakpoints: tuple[float, ...]
    tolerance: float
    value: float | None
    verdicts: set[str]


def number(text):
    return {"inf": INF, "-inf": -INF, "2*pi": 2 * PI}[text] if isinstance(text, str) else text


def cases(truths):
    records = truths("integrals.json")
    for row in records["one_d"]:
        tolerance = 1e-8 if row["kind"] == "endpoint-singular" else 1e-12
        plain = Case(
            row["id"],
            TRUTHS[row["id"]],
            number(row["a"]),
            number(row["b"]),
            (),
            tolerance,
            float(row["value"]),
            {CONVERGES},
        )
        yield plain
        if row["id"] in SPLIT:
            yield plain._replace(name=f"{row['id']} split", breakpoints=tuple(map(float, row["breakpoints"])))
    for row in records["divergent_or_conditional"]:
        verdict = {TRUTH_VERDICTS[row["id"]]}
        yield Case(row["id"], TRUTHS[row["id"]], number(row["a"]), number(row["b"]), (), 0, None, verdict)
    for name, (f, lower, upper, value, tolerance) in MORE.items():
        yield Case(name, f, lower, upper, (), tolerance, value, {CONVERGES, NOT_REACHED})
    for name, (f, lower, upper, verdicts, value) in VERDICTS.items():
        yield Case(name, f, lower, upper, (), 1e-8, value, verdicts)


def one_program(members):
    """Integrate one case after the other, with the case's number as data."""
    branches = [case.f for case in members]
    far = members[0].lower == -INF, members[0].upper == INF

    def run(which, lower, upper):
        limits = -INF if far[0] else lower, INF if far[1] else upper
        return integrate(lambda x: jax.lax.switch(which, branches, x), *limits)

    limits = [[0.0 if math.isinf(limit) else float(limit) for limit in case[2:4]] for case in members]
    if all(far):
        batch = jax.jit(jax.vmap(run), compiler_options=FAST)(jnp.arange(len(members)), *jnp.array(limits).T)
        return [jax.tree.map(lambda leaf, which=which: leaf[which], batch) for which in range(len(members))]
    program = jax.jit(run, compiler_options=FAST)
    return [program(which, *pair) for which, pair in enumerate(limits)]


@pytest.fixture(scope="module")
def results(truths):
    """Integral of every case: over the whole line all at once, those with breakpoints not compiled."""
    groups, found = {}, {}
    for case in cases(truths):
        if case.breakpoints:
            found[case.name] = case, integrate(case.f, case.lower, case.upper, breakpoints=case.breakpoints)
        else:
            groups.setdefault((case.lower == -INF, case.upper == INF), []).append(case)
    for members in groups.values():
        found |= {case.name: (case, result) for case, result in zip(members, one_program(members), strict=True)}
    return found


def test_every_truth_is_here(truths):
    records = truths("integrals.json")
    assert {row["id"] for row in records["one_d"] + records["divergent_or_conditional"]} == set(TRUTHS)


def test_values(results):
    wrong = []
    for case, result in results.values():
        if case.value is None or math.isinf(case.value):
            continue
        error = abs(float(result.value) - case.value)
        if not error <= case.tolerance * abs(case.value):
            wrong.append(f"{case.name}: {float(result.value)!r} is off by {error:.1e}")
    assert not wrong


def test_errors_are_not_understated(results):
    wrong = []
    for case, result in results.values():
        if (
            case.value is not None
            and math.isfinite(case.value)
            and not abs(float(result.value) - case.value) <= result.error
        ):
            wrong.append(
                f"{case.name}: off by {abs(float(result.value) - case.value):.1e}, said {float(result.error):.1e}"
            )
    assert not wrong


def test_verdicts(results):
    wrong = [
        f"{case.name}: {result.verdict}" for case, result in results.values() if result.verdict not in case.verdicts
    ]
    assert not wrong


def test_no_value_where_there_is_none(results):
    for case, result in results.values():
        if result.verdict in (DIVERGES, UNDECIDED, OSCILLATES, NOT_FINITE):
            assert math.isinf(result.error)
            assert result.verdict == UNDECIDED or not math.isfinite(result.value)
        if case.value is not None and math.isinf(case.value):
            assert result.value == case.value


def test_derivatives_to_second_order_of_easy_and_hard_lanes():
    def integral(at):
        a, power, jump = at

        def f(x):
            return jnp.where(x < jump, a * x**power, jnp.sin(a * x))

        result = integrate(f, 0.0, a, breakpoints=(jump,))
        return result.value, result

    def slope(at):
        (_, result), by = jax.value_and_grad(integral, has_aux=True)(at)
        return by, (result, by)

    def expected(at):
        a, power, jump = at
        return a * jump ** (power + 1) / (power + 1) + (jnp.cos(a * jump) - jnp.cos(a**2)) / a

    at = jnp.array([[1.3, -0.5, 0.3], [0.8, 2.0, 0.5], [1.6, 0.5, 1.0]])
    run = jax.jit(jax.vmap(jax.jacfwd(slope, has_aux=True)), compiler_options=FAST)
    second, (result, first) = run(at)
    # The square root's pole at 0 may leave the tolerance unreached.
    assert np.all(np.asarray(result.status) <= [1, 0, 0])
    np.testing.assert_allclose(result.value, jax.vmap(expected)(at), rtol=1e-8)
    np.testing.assert_allclose(result.value[1], expected(at[1]), rtol=1e-13)
    np.testing.assert_allclose(first, jax.vmap(jax.grad(expected))(at), rtol=1e-8)
    np.testing.assert_allclose(second, jax.jit(jax.vmap(jax.hessian(expected)))(at), rtol=1e-7, atol=1e-9)


def test_leibniz_without_compilation():
    def value(a):
        return integrate(lambda x: jnp.sin(a * x), 0.0, a).value

    # d/da ∫_0^a f(x, a) dx = f(a, a) + ∫ ∂f/∂a dx.
    a = 1.3
    inner = integrate(lambda x: x * jnp.cos(a * x), 0.0, a).value
    assert jax.grad(value)(a) == pytest.approx(math.sin(a**2) + float(inner), rel=1e-12)
    by_rate = jax.grad(lambda rate: integrate(lambda x: x**1.5 * jnp.exp(-rate * x), 0.0, INF).value)(2.0)
    assert by_rate == pytest.approx(-2.5 * math.gamma(2.5) / 2**3.5, rel=1e-9)


def test_float32_stays_and_does_not_understate():
    zero, one = np.float32(0), np.float32(1)
    fs = {
        jnp.exp: math.expm1(1),
        (lambda x: x**-0.5): 2.0,
        (lambda x: x**-0.9): 10.0,
        jnp.log: -1.0,
        (lambda x: 1 / (1 + (230 * x - 30) ** 2)): (math.atan(200) + math.atan(30)) / 230,
        (lambda x: 1 / x): None,
        (lambda x: 1 / (x - 0.3)): None,
    }
    program = jax.jit(
        lambda which: integrate(lambda x: jax.lax.switch(which, list(fs), x), zero, one),
        compiler_options=FAST,
    )
    for which, expected in enumerate(fs.values()):
        result = program(which)
        assert result.value.dtype == result.error.dtype == jnp.float32
        if expected is None:
            assert result.verdict in (DIVERGES, UNDECIDED)
        else:
            assert abs(float(result.value) - expected) <= result.error < 1e-2 * abs(expected)


def test_limits_turn_and_meet():
    assert integrate(lambda x: jnp.exp(-x), INF, 0.0).value == pytest.approx(-1, rel=1e-12)
    assert integrate(jnp.exp, 0.0, -INF).value == pytest.approx(-1, rel=1e-12)
    with_points = integrate(jnp.exp, 1.0, 0.0, breakpoints=(0.7, 0.2, 5.0))
    assert with_points.value == pytest.approx(-math.expm1(1), rel=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="lower must be a number or infinite, got nan"):
        integrate(jnp.exp, math.nan, 1.0)
    with pytest.raises(ValueError, match="breakpoints must be finite, got inf"):
        integrate(jnp.exp, 0.0, 1.0, breakpoints=(INF,))
    with pytest.raises(ValueError, match="tolerance must be a relative error between 0 and 1, got 0"):
        integrate(jnp.exp, 0.0, 1.0, tolerance=0)
