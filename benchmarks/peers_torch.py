"""PyTorch as its tutorials write it: modules, an optimiser, a loop, one run after another.

Shuffled batches are taken by index from one `randperm` an epoch, which is several times faster than a `DataLoader`.
"""

import numpy as np
import torch
from torch import nn

from benchmarks.workloads import CLASSES, Ensemble, Initialisation, Line, Regression, Training, deviation

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def linear(inputs, outputs, initialiser):
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=deviation(initialiser, inputs, outputs))
    nn.init.zeros_(layer.bias)
    return layer


def line_model(activation):
    return nn.Sequential(linear(1, 1, "lecun_normal"), ACTIVATIONS[activation]())


def network(inputs, width, initialiser):
    return nn.Sequential(linear(inputs, width, initialiser), nn.ReLU(), linear(width, CLASSES, initialiser))


class Stack(nn.Module):
    """Equal hidden layers and a linear read-out."""

    def __init__(self, depth, width, activation, initialiser):
        super().__init__()
        self.hidden = nn.ModuleList([linear(width, width, initialiser) for _ in range(depth)])
        self.readout = linear(width, CLASSES, initialiser)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x):
        """Return logits."""
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.readout(x)

    def forward_with_layers(self, x, offsets=None):
        """Return logits, pre-activations and outputs of all layers, the read-out included."""
        preactivations, outputs = [], []
        for index, layer in enumerate([*self.hidden, self.readout]):
            z = layer(x) if offsets is None else layer(x) + offsets[index]
            x = self.activation(z) if layer is not self.readout else z
            preactivations.append(z)
            outputs.append(x)
        return x, preactivations, outputs

    def weights(self):
        """Return the weights of all layers, the read-out last."""
        return [layer.weight for layer in [*self.hidden, self.readout]]


def tensors(data):
    return [torch.from_numpy(array) if array.ndim > 1 else torch.from_numpy(array).long() for array in data]


def shuffled(rows, batch):
    return torch.randperm(rows)[: rows // batch * batch].split(batch)


def w1(work: Line) -> dict[str, np.ndarray]:
    losses = np.empty((len(work.activations), len(work.rates), work.seeds, work.steps), np.float32)
    criterion = nn.MSELoss()
    for i, activation in enumerate(work.activations):
        for j, rate in enumerate(work.rates):
            for seed in range(work.seeds):
                torch.manual_seed(seed)
                model = line_model(activation)
                optimizer = torch.optim.SGD(model.parameters(), lr=rate)
                for step in range(work.steps):
                    x = torch.randn(work.batch, 1)
                    optimizer.zero_grad()
                    loss = criterion(model(x), 2 * x + 1)
                    loss.backward()
                    optimizer.step()
                    losses[i, j, seed, step] = loss.item()
    return {"loss": losses}


def w2i(work: Initialisation) -> dict[str, np.ndarray]:
    shape = (len(work.depths), len(work.activations), len(work.initialisers), work.seeds, max(work.depths) + 1)
    result = {name: np.full(shape, np.nan, np.float32) for name in ("weight_gradient", "signal", "second_moment")}
    x, labels = tensors((work.features, work.labels))
    criterion = nn.CrossEntropyLoss()
    for i, depth in enumerate(work.depths):
        for j, activation in enumerate(work.activations):
            for k, initialiser in enumerate(work.initialisers):
                for seed in range(work.seeds):
                    torch.manual_seed(seed)
                    model = Stack(depth, x.shape[1], activation, initialiser)
                    logits, preactivations, outputs = model.forward_with_layers(x)
                    for z in preactivations:
                        z.retain_grad()
                    criterion(logits, labels).backward()
                    for layer, weight in enumerate(model.weights()):
                        at = (i, j, k, seed, layer)
                        result["weight_gradient"][at] = weight.grad.norm().item()
                        result["signal"][at] = preactivations[layer].grad.norm().item()
                        result["second_moment"][at] = outputs[layer].pow(2).mean().item()
    return result


def train_stack(work: Training, data, activation, rate, seed):
    features, labels, test_features, test_labels = data
    torch.manual_seed(seed)
    model = Stack(work.depth, features.shape[1], activation, work.initialiser)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    criterion = nn.CrossEntropyLoss()
    losses, norms, step = [], [], 0
    while step < work.steps:
        for rows in shuffled(len(features), work.batch)[: work.steps - step]:
            optimizer.zero_grad()
            loss = criterion(model(features[rows]), labels[rows])
            loss.backward()
            if (step + 1) % work.gradient_every == 0:
                norms.append([weight.grad.norm().item() for weight in model.weights()])
            if (step + 1) % work.loss_every == 0:
                losses.append(loss.item())
            optimizer.step()
            step += 1
    with torch.no_grad():
        reached = (model(test_features).argmax(dim=1) == test_labels).float().mean().item()
    return {"loss": losses, "weight_gradient": norms, "accuracy": reached}


def w2t(work: Training) -> dict[str, np.ndarray]:
    data = tensors(work.data)
    runs = [
        [[train_stack(work, data, name, rate, seed) for seed in range(work.seeds)] for rate in work.rates]
        for name in work.activations
    ]
    names = ("loss", "weight_gradient", "accuracy")
    return {name: np.array([[[run[name] for run in line] for line in page] for page in runs]) for name in names}


def w3(work: Regression) -> dict[str, np.ndarray]:
    features, targets = torch.from_numpy(work.features), torch.from_numpy(work.targets)[:, None]
    losses = np.empty((len(work.rates), work.steps), np.float32)
    weights = np.empty((len(work.rates), features.shape[1]), np.float32)
    criterion = nn.MSELoss()
    for i, rate in enumerate(work.rates):
        model = nn.Linear(features.shape[1], 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for step in range(work.steps):
            optimizer.zero_grad()
            loss = criterion(model(features), targets)
            loss.backward()
            optimizer.step()
            losses[i, step] = loss.item()
        weights[i] = model.weight.detach().numpy()[0]
    return {"loss": losses, "weights": weights}


def w4(work: Ensemble) -> dict[str, np.ndarray]:
    features, labels, test_features, test_labels = tensors(work.data)
    criterion = nn.CrossEntropyLoss()
    losses, reached = [], []
    for seed in range(work.seeds):
        torch.manual_seed(seed)
        model = network(features.shape[1], work.width, work.initialiser)
        optimizer = torch.optim.Adam(model.parameters(), lr=work.rate)
        history = []
        for _ in range(work.epochs):
            for rows in shuffled(len(features), work.batch):
                optimizer.zero_grad()
                loss = criterion(model(features[rows]), labels[rows])
                loss.backward()
                optimizer.step()
                history.append(loss.item())
        losses.append(history)
        with torch.no_grad():
            reached.append((model(test_features).argmax(dim=1) == test_labels).float().mean().item())
    return {"loss": np.array(losses), "accuracy": np.array(reached)}


WORKLOADS = {"W1": w1, "W2i": w2i, "W2t": w2t, "W3": w3, "W4": w4}
