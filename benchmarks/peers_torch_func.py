"""PyTorch's answer to many models at once: `torch.func`, one `vmap` over stacked modules, a loop over the steps."""

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap

from benchmarks.peers_torch import Stack, line_model, network, tensors
from benchmarks.workloads import CLASSES, Ensemble, Initialisation, Line, Regression, Training


def lanes_of(rates, seeds):
    """Learning rate of each lane, rates outermost."""
    return torch.tensor(rates).repeat_interleave(seeds)


def stacked(make, count):
    """Parameters of `count` modules with a leading axis, and a module without data to call them through."""
    torch.manual_seed(0)
    parameters, _ = stack_module_state([make() for _ in range(count)])
    return {name: value.detach() for name, value in parameters.items()}, make().to("meta")


def along(rates, like):
    return rates.view(-1, *[1] * (like.ndim - 1))


def descend(parameters, gradients, rates):
    for name, value in parameters.items():
        value.sub_(along(rates, value) * gradients[name])


def orders(lanes, rows, batch):
    """Rows of each batch of one epoch, shuffled for each lane: a tuple of `[lanes, batch]`."""
    return torch.rand(lanes, rows).argsort(dim=1)[:, : rows // batch * batch].split(batch, dim=1)


def classify(base):
    def loss(parameters, x, labels):
        return nn.functional.cross_entropy(functional_call(base, parameters, (x,)), labels)

    return loss


def accuracies(base, parameters, features, labels):
    with torch.no_grad():
        logits = vmap(lambda one: functional_call(base, one, (features,)))(parameters)
    return (logits.argmax(dim=2) == labels).float().mean(dim=1)


def layer_norms(gradients, readout="readout.weight"):
    names = [name for name in gradients if name.startswith("hidden") and name.endswith("weight")]
    return torch.stack([gradients[name].flatten(1).norm(dim=1) for name in [*names, readout]], dim=1)


def w1(work: Line) -> dict[str, np.ndarray]:
    rates = lanes_of(work.rates, work.seeds)
    losses = torch.empty(len(work.activations), work.steps, len(rates))
    for i, activation in enumerate(work.activations):
        parameters, base = stacked(lambda name=activation: line_model(name), len(rates))

        def loss(parameters, x, base=base):
            return nn.functional.mse_loss(functional_call(base, parameters, (x,)), 2 * x + 1)

        step_of_all = vmap(grad_and_value(loss))
        for step in range(work.steps):
            x = torch.randn(len(rates), work.batch, 1)
            gradients, losses[i, step] = step_of_all(parameters, x)
            descend(parameters, gradients, rates)
    shape = (len(work.activations), work.steps, len(work.rates), work.seeds)
    return {"loss": losses.view(shape).permute(0, 2, 3, 1).numpy()}


class WithLayers(nn.Module):
    """A stack whose call returns what every layer did."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, offsets):
        """Return logits and the second moment of each layer's output."""
        logits, _, outputs = self.model.forward_with_layers(x, offsets)
        return logits, torch.stack([output.pow(2).mean() for output in outputs])


def measure(work: Initialisation, x, labels, depth, activation, initialiser):
    width = x.shape[1]
    parameters, base = stacked(lambda: WithLayers(Stack(depth, width, activation, initialiser)), work.seeds)
    offsets = [torch.zeros(len(x), width)] * depth + [torch.zeros(len(x), CLASSES)]

    def loss(parameters, offsets):
        logits, moments = functional_call(base, parameters, (x, offsets))
        return nn.functional.cross_entropy(logits, labels), moments

    differentiate = vmap(grad(loss, argnums=(0, 1), has_aux=True), in_dims=(0, None))
    (by_parameters, by_offsets), moments = differentiate(parameters, offsets)
    renamed = {name.removeprefix("model."): value for name, value in by_parameters.items()}
    signals = torch.stack([signal.flatten(1).norm(dim=1) for signal in by_offsets], dim=1)
    return {"weight_gradient": layer_norms(renamed), "signal": signals, "second_moment": moments}


def w2i(work: Initialisation) -> dict[str, np.ndarray]:
    shape = (len(work.depths), len(work.activations), len(work.initialisers), work.seeds, max(work.depths) + 1)
    result = {name: np.full(shape, np.nan, np.float32) for name in ("weight_gradient", "signal", "second_moment")}
    x, labels = tensors((work.features, work.labels))
    for i, depth in enumerate(work.depths):
        for j, activation in enumerate(work.activations):
            for k, initialiser in enumerate(work.initialisers):
                found = measure(work, x, labels, depth, activation, initialiser)
                for name, value in found.items():
                    result[name][i, j, k, :, : depth + 1] = value.numpy()
    return result


def train_stacks(work: Training, data, activation):
    features, labels, test_features, test_labels = data
    rates = lanes_of(work.rates, work.seeds)
    parameters, base = stacked(lambda: Stack(work.depth, features.shape[1], activation, work.initialiser), len(rates))
    step_of_all = vmap(grad_and_value(classify(base)))
    losses, norms, step = [], [], 0
    while step < work.steps:
        for rows in orders(len(rates), len(features), work.batch)[: work.steps - step]:
            gradients, values = step_of_all(parameters, features[rows], labels[rows])
            if (step + 1) % work.gradient_every == 0:
                norms.append(layer_norms(gradients))
            if (step + 1) % work.loss_every == 0:
                losses.append(values)
            descend(parameters, gradients, rates)
            step += 1
    shape = (len(work.rates), work.seeds)
    return {
        "loss": torch.stack(losses, dim=1).view(*shape, -1).numpy(),
        "weight_gradient": torch.stack(norms, dim=1).view(*shape, len(norms), -1).numpy(),
        "accuracy": accuracies(base, parameters, test_features, test_labels).view(shape).numpy(),
    }


def w2t(work: Training) -> dict[str, np.ndarray]:
    data = tensors(work.data)
    found = [train_stacks(work, data, activation) for activation in work.activations]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def w3(work: Regression) -> dict[str, np.ndarray]:
    features, targets = torch.from_numpy(work.features), torch.from_numpy(work.targets)
    rates = torch.tensor(work.rates)
    weights = torch.zeros(len(rates), features.shape[1])
    losses = torch.empty(work.steps, len(rates))
    step_of_all = vmap(grad_and_value(lambda w: nn.functional.mse_loss(features @ w, targets)))
    for step in range(work.steps):
        gradients, losses[step] = step_of_all(weights)
        weights -= rates[:, None] * gradients
    return {"loss": losses.T.numpy(), "weights": weights.numpy()}


def w4(work: Ensemble) -> dict[str, np.ndarray]:
    features, labels, test_features, test_labels = tensors(work.data)
    parameters, base = stacked(lambda: network(features.shape[1], work.width, work.initialiser), work.seeds)
    # Adam acts on each entry alone, so one optimiser over the stacked tensors is one for each network
    optimizer = torch.optim.Adam(parameters.values(), lr=work.rate)
    step_of_all = vmap(grad_and_value(classify(base)))
    losses = []
    for _ in range(work.epochs):
        for rows in orders(work.seeds, len(features), work.batch):
            gradients, values = step_of_all(parameters, features[rows], labels[rows])
            for name, value in parameters.items():
                value.grad = gradients[name]
            optimizer.step()
            losses.append(values)
    reached = accuracies(base, parameters, test_features, test_labels)
    return {"loss": torch.stack(losses, dim=1).numpy(), "accuracy": reached.numpy()}


WORKLOADS = {"W1": w1, "W2i": w2i, "W2t": w2t, "W3": w3, "W4": w4}
