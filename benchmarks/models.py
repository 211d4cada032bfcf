"""Models beside scikit-learn and PyTorch: `python -m benchmarks.models`.

- logistic regression and squared hinge on breast_cancer, C = 1, by Newton, beside scikit-learn's quickest solvers; one
  fit, and 1,000 fits of bootstrap samples as one study, scikit-learn in a loop over part of them, multiplied up;
- a support vector machine with a Gaussian kernel, by accelerated projected descent, beside `SVC`; one fit, and a grid
  of penalties and widths as one study;
- boosting of 100 trees on diabetes beside `GradientBoostingRegressor`; one path, and 8 rates as lanes of one;
- training a variational autoencoder of digits, an adversarial network of points by both players in turn, and a critic
  with a gradient penalty, each for 500 steps of Adam, beside PyTorch eager; one run, and 8 seeds as one study.

All in this one process and in turn; medians of 5. What a first call takes longer, to compile, is not in the times, but
printed. How far the answers of
deterministic fits lie apart is printed too; networks start from other draws and are compared in time alone.
"""

import time
import warnings
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.clock import TURNS, median
from calcdl import data, nn, optim, study
from calcdl.nn import adversarial, kernels, variational
from calcdl.optim import function_space
from calcdl.train import Problem, make_run

FITS, PART, SEEDS, STEPS = 1_000, 10, 8, 500
STAGES, RATES = 100, [0.02 * place for place in range(1, SEEDS + 1)]
PIXELS, WIDTH, LATENTS, BATCH, RATE = 64, 64, 8, 64, 1e-3


def report(name, ours, peers):
    """Print our median and how many times longer each peer takes, `(call, how often it must be called)`."""
    begun = time.perf_counter()
    ours()
    first = time.perf_counter() - begun
    here = median(ours)
    print(f"\n{name}: calcdl {1e3 * here:.3g} ms, the first time {first:.1f} s")
    for peer, (call, times) in peers.items():
        there = times * median(call)
        print(f"  {peer:<42} {1e3 * there:10.3g} ms, ratio {there / here:8.2f}")


def compiled(function, *arguments):
    """Return a compiled function of no arguments."""
    program = jax.jit(function)
    return lambda: jax.block_until_ready(program(*arguments))


def cancer():
    """Return the columns of breast_cancer, standardised, and its labels."""
    dataset, _ = data.standardise(data.load("breast_cancer"))
    return dataset.features, dataset.targets


def linear(name, loss, models, *, free):
    """Compare linear classifiers, whose intercept is free of the penalty or not, and their coefficients."""
    x, y = cancer()
    counts = np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y)), size=FITS).astype(float)

    def fit(weight):
        def objective(params):
            size = params[:-1] @ params[:-1] if free else params @ params
            return weight @ loss(x @ params[:-1] + params[-1], y) + size / 2

        start = jnp.zeros(x.shape[1] + 1)
        return optim.minimise(objective, start, optim.newton(), steps=50, tolerance=1e-9).params[:-1]

    def lane(key, *, sample, counts):
        return {"weight": fit(counts[sample])}

    def every():
        return study.run(lane, [study.axis("sample", range(FITS))], name="bootstrap", dtype="float64",
                         shared={"counts": counts}, dimensions={"weight": ("column",)}).weight.values  # fmt: skip

    def theirs(model, weights):
        return np.stack([model.fit(x, y, weight).coef_[0] for weight in weights])

    all_rows = np.ones((1, len(y)))
    report(f"{name}, one fit", compiled(fit, jnp.ones(len(y))),
           {peer: (partial(theirs, model, all_rows), 1) for peer, model in models.items()})  # fmt: skip
    report(f"{name}, {FITS:,} bootstrap samples", every,
           {peer: (partial(theirs, model, counts[:PART]), FITS / PART) for peer, model in models.items()})  # fmt: skip
    away = {peer: np.abs(theirs(model, counts[:PART]) - every()[:PART]).max() for peer, model in models.items()}
    print("  coefficients differ by at most", ", ".join(f"{size:.1e} ({peer})" for peer, size in away.items()))


def support_vectors():
    """Compare support vector machines with a Gaussian kernel, and their decisions."""
    from sklearn.svm import SVC

    x, labels = cancer()
    y, width = 2.0 * labels - 1, x.shape[1] ** 0.5

    def fit(penalty, width):
        gram = kernels.gram(partial(kernels.rbf, width=width), jnp.asarray(x))
        section = optim.projection("box_section", lower=0.0, upper=penalty, a=jnp.asarray(y), b=0.0)
        solver = optim.proximal_descent(
            1 / jnp.linalg.norm(gram),
            optim.proximal_projection(section),
            accelerated=True,
        )
        found = optim.minimise(lambda a: -kernels.dual_value(a, y, gram), jnp.zeros(len(y)), solver, steps=20_000,
                               tolerance=1e-3)  # fmt: skip
        machine = kernels.machine(found.params, y, gram, penalty)
        return y * machine.margins, 1 - machine.dual / machine.primal

    def lane(key, *, penalty, width):
        decisions, gap = fit(penalty, width)
        return {"decisions": decisions, "gap": gap}

    def theirs(penalties, widths):
        pairs = [(penalty, width) for penalty in penalties for width in widths]
        models = (SVC(C=penalty, gamma=1 / (2 * width**2)) for penalty, width in pairs)
        return np.stack([model.fit(x, y).decision_function(x) for model in models])

    penalties, widths = [0.1, 1.0, 10.0, 100.0], [width / 2, width, 2 * width, 4 * width]
    axes = [study.axis("penalty", penalties), study.axis("width", widths)]
    grid = partial(study.run, lane, axes, name="grid", dtype="float64", dimensions={"decisions": ("row",)})
    report("kernel machine, one fit", compiled(fit, 1.0, width), {"SVC": (partial(theirs, [1.0], [width]), 1)})
    report(f"kernel machine, {len(penalties)} penalties x {len(widths)} widths", grid,
           {"SVC": (partial(theirs, penalties, widths), 1)})  # fmt: skip
    found = grid()
    away = np.abs(found.decisions.values.reshape(-1, len(y)) - theirs(penalties, widths)).max()
    print(
        f"  decisions differ by at most {away:.1e}; our largest gap, of the primal value: {float(found.gap.max()):.1e}"
    )


def boosting():
    """Compare paths of boosting, and their predictions."""
    from sklearn.ensemble import GradientBoostingRegressor

    dataset = data.load("diabetes")
    x, y = dataset.features, dataset.targets

    def ours(rates):
        return function_space.gradient_boosting(
            nn.squared_error, x, y, np.arange(len(y)), stages=STAGES, rates=rates
        ).prediction[-1]

    def theirs(rates):
        models = (GradientBoostingRegressor(n_estimators=STAGES, learning_rate=rate, random_state=0) for rate in rates)
        return np.stack([model.fit(x, y).predict(x) for model in models])

    for name, rates in (("boosting, one path", [0.1]), (f"boosting, {len(RATES)} rates", RATES)):
        report(name, partial(ours, rates), {"GradientBoostingRegressor": (partial(theirs, rates), 1)})
    print(f"  predictions differ by at most {np.abs(ours([0.1]) - theirs([0.1])).max() / y.std():.1e} deviations")


def dense(outputs, depth=1):
    """Return a relu network."""
    return nn.stack(depth, WIDTH, outputs, nn.ACTIVATIONS["relu"], nn.INITIALISERS["he_normal"])


def autoencoder(images):
    """Return the problem and solver of a variational autoencoder with independent pixels."""
    encoder, decoder = dense(2 * LATENTS), dense(PIXELS)

    def init(key):
        keys = jax.random.split(key)
        return {"encoder": encoder.init(keys[0], (PIXELS,)), "decoder": decoder.init(keys[1], (LATENTS,))}

    coder = variational.Coder(
        init,
        encode=lambda params, x: jnp.split(encoder.apply(params["encoder"], x), 2, axis=-1),
        decode=lambda params, z: decoder.apply(params["decoder"], z),
        log_density=lambda params, logits, x: -jnp.sum(nn.losses.binary_cross_entropy(logits, x), axis=-1),
    )
    noise = data.fresh(lambda key, count: jax.random.normal(key, (count, BATCH, LATENTS), jnp.float32))
    batches = data.together(data.minibatches(images, BATCH), noise)
    loss = lambda params, batch: jnp.mean(jnp.sum(variational.bound(coder, params, *batch), axis=0))  # noqa: E731
    return Problem(init, loss, batches), optim.descent("adam", RATE)


def adversaries(rules, images, penalty=0.0):
    """Return the problem and solver of a generator and a discriminator that move in turn."""
    judge, maker = dense(1, 2), dense(PIXELS, 2)

    def init(key):
        keys = jax.random.split(key)
        return {"discriminator": judge.init(keys[0], (PIXELS,)), "generator": maker.init(keys[1], (LATENTS,))}

    def height(params, x):
        return judge.apply(params, x)[:, 0]

    def loss(params, batch):
        real, (noise, share) = batch
        total = adversarial.game(adversarial.GAMES[rules], height, maker.apply, params, real, noise)
        if penalty:
            fake = jax.lax.stop_gradient(maker.apply(params["generator"], noise))
            own = partial(height, params["discriminator"])
            total += penalty * adversarial.PENALTIES["gradient_penalty"](own, real, fake, share)
        return total

    def draw(key, count):
        keys = jax.random.split(key)
        return (
            jax.random.normal(keys[0], (count, BATCH, LATENTS), jnp.float32),
            jax.random.uniform(keys[1], (count, BATCH), jnp.float32),
        )

    turns = optim.alternating(
        *(optim.frozen(optim.descent("adam", RATE), [f"{other}.*"]) for other in ("generator", "discriminator"))
    )
    return Problem(init, loss, data.together(data.minibatches(images, BATCH), data.fresh(draw))), turns


def torch_network(sizes):
    """Return a relu network of PyTorch."""
    import torch

    layers = [layer for ins, outs in pairwise(sizes)
              for layer in (torch.nn.Linear(ins, outs), torch.nn.ReLU())]  # fmt: skip
    return torch.nn.Sequential(*layers[:-1])


def torch_batches(rows):
    """Yield shuffled batches for `STEPS` steps."""
    import torch

    left = []
    for _ in range(STEPS):
        left = left or list(torch.randperm(len(rows))[: len(rows) // BATCH * BATCH].split(BATCH))
        yield rows[left.pop()]


def torch_autoencoder(rows):
    """Train a variational autoencoder as PyTorch's tutorials do."""
    import torch

    encoder = torch_network([PIXELS, WIDTH, 2 * LATENTS])
    decoder = torch_network([LATENTS, WIDTH, PIXELS])
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE)
    for x in torch_batches(rows):
        mean, log_deviation = encoder(x).chunk(2, dim=1)
        logits = decoder(mean + log_deviation.exp() * torch.randn_like(mean))
        distortion = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") / BATCH
        rate = (mean**2 + torch.expm1(2 * log_deviation) - 2 * log_deviation).sum() / (2 * BATCH)
        adam.zero_grad()
        (distortion + rate).backward()
        adam.step()


def torch_adversaries(rules, rows, penalty=0.0):
    """Train a generator and a discriminator as PyTorch's tutorials do."""
    import torch

    judge, maker = torch_network([PIXELS, WIDTH, WIDTH, 1]), torch_network([LATENTS, WIDTH, WIDTH, PIXELS])
    movers = [torch.optim.Adam(player.parameters(), lr=RATE) for player in (judge, maker)]
    softplus = torch.nn.functional.softplus
    for x in torch_batches(rows):
        made = maker(torch.randn(BATCH, LATENTS))
        real, fake = judge(x), judge(made.detach())
        critical = rules == "wasserstein"
        loss = fake.mean() - real.mean() if critical else softplus(-real).mean() + softplus(fake).mean()
        if penalty:
            share = torch.rand(BATCH, 1)
            at = (share * x + (1 - share) * made.detach()).requires_grad_()
            (slope,) = torch.autograd.grad(judge(at).sum(), at, create_graph=True)
            loss = loss + penalty * ((slope.norm(dim=1) - 1) ** 2).mean()
        movers[0].zero_grad()
        loss.backward()
        movers[0].step()
        seen = judge(made)
        loss = -seen.mean() if critical else softplus(-seen).mean()
        movers[1].zero_grad()
        loss.backward()
        movers[1].step()


def networks():
    """Compare training runs."""
    import torch

    images = data.load("digits", constant="keep", collinear="keep").features.astype(np.float32)
    rows = torch.from_numpy(images)
    pairs = {
        "autoencoder": (autoencoder(images), partial(torch_autoencoder, rows)),
        **{
            name: (adversaries(rules, images, penalty), partial(torch_adversaries, rules, rows, penalty))
            for name, rules, penalty in (
                ("adversaries", "non_saturating", 0.0),
                ("critic with a gradient penalty", "wasserstein", 10.0),
            )
        },
    }
    for name, ((problem, solver), theirs) in pairs.items():
        run = make_run(problem, solver, steps=STEPS, record_every=STEPS)
        seeds = partial(study.run, partial(last_loss, run=run), [study.axis("seed", range(SEEDS))], name="seeds")
        title = f"{name}, {STEPS} steps"
        report(title, compiled(run, jax.random.key(0)), {"torch": (theirs, 1)})
        report(f"{title}, {SEEDS} seeds", seeds, {"torch": (theirs, SEEDS)})


def last_loss(key, *, run):
    """Return what a study keeps of a run."""
    return {"last": run(key).loss[-1]}


def main():
    """Print all of it."""
    warnings.simplefilter("ignore")
    print(f"medians of {TURNS}; a ratio above 1: calcdl is faster")
    networks()
    with jax.enable_x64(True):
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        solvers = ("newton-cholesky", "lbfgs")
        models = {name: LogisticRegression(solver=name, tol=1e-8, max_iter=10_000) for name in solvers}
        linear("logistic", nn.losses.binary_cross_entropy, models, free=True)
        linear("squared hinge", lambda score, label: nn.losses.squared_hinge(score, 2 * label - 1),
               {"LinearSVC": LinearSVC(dual=False, tol=1e-8, max_iter=10_000)}, free=False)  # fmt: skip
        support_vectors()
        boosting()


if __name__ == "__main__":
    main()
