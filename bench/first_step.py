"""The digits network's first training step; timed from outside by bench.layers."""

import numpy as np

from dlnotes import AdamW, Conv2d, CrossEntropyLoss, Flatten, Linear, MaxPool2d, ReLU, Sequential


def train():
    model = Sequential(
        Conv2d(1, 16, 3, padding=1, rng=0),
        ReLU(),
        MaxPool2d(2),
        Conv2d(16, 32, 3, padding=1, rng=1),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(128, 10, rng=2),
    )
    loss, optimizer = CrossEntropyLoss(), AdamW(model.params)
    x = np.random.default_rng(0).random((32, 1, 8, 8), dtype=np.float32)
    answer, cache = model.forward(x)
    _, at = loss.forward(answer, np.arange(32) % 10)
    optimizer.step(model.backward(loss.backward(at), cache, input_grad=False)[1])


if __name__ == "__main__":
    train()
