"""A convolutional network on scikit-learn's digits: `python -m experiments.digits_cnn`.

Five seeds, each with its own stratified split into 80% training and 20% test pictures, its own
first weights and its own order. The test pictures are looked at once, after the last epoch. As the
settings were chosen on splits with seeds from 0 to 9, five fresh seeds follow. The chapter `cnn`
shows the result, which is kept in experiments/results/digits_cnn.json.
"""

import json
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from bench.measure import machine
from dlnotes.cnn import Conv2d, Flatten, MaxPool2d
from dlnotes.core.layers import Sequential
from dlnotes.mlp import CrossEntropyLoss, Linear, ReLU
from dlnotes.training import AdamW, cosine_lr, fit

RESULT = Path(__file__).parent / "results" / "digits_cnn.json"
SETTINGS = {
    "channels": [32, 64],
    "epochs": 60,
    "batch_size": 32,
    "lr": 5e-3,
    "weight_decay": 0.05,
    "degrees": 10,
    "zoom": 0.15,
    "shear": 0.1,
    "shift": 0.7,
}


def network(channels, rng):
    "Two convolutions, each with ReLU and pooling, and a dense layer: 8 by 8 pixels to 10 logits."
    few, many = channels
    return Sequential(
        Conv2d(1, few, 3, padding=1, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Conv2d(few, many, 3, padding=1, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(many * 4, 10, rng=rng),
    )


def at(images, rows, columns):
    "Images (m, height, width) at places between their pixels, (m, ...) each; zero outside."
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    rows = np.clip(rows + 2, 0, padded.shape[1] - 1.001)
    columns = np.clip(columns + 2, 0, padded.shape[2] - 1.001)
    i, j, k = rows.astype(int), columns.astype(int), np.arange(len(images))[:, None, None]
    down, right = rows - i, columns - j
    return (1 - down) * ((1 - right) * padded[k, i, j] + right * padded[k, i, j + 1]) + down * (
        (1 - right) * padded[k, i + 1, j] + right * padded[k, i + 1, j + 1]
    )


def distorted(images, rng, degrees, zoom, shear, shift):
    "Each image (m, 1, 8, 8) turned, enlarged, slanted and shifted a little, at random."

    def one(width):
        return rng.uniform(-width, width, (len(images), 1, 1))

    angle, size, slant = np.deg2rad(one(degrees)), 1 + one(zoom), one(shear)
    y, x = np.mgrid[:8, :8] - 3.5
    rows = np.cos(angle) / size * y + (np.sin(angle) / size + slant) * x + 3.5 + one(shift)
    columns = -np.sin(angle) / size * y + np.cos(angle) / size * x + 3.5 + one(shift)
    return at(images[:, 0], rows, columns)[:, None].astype(images.dtype)


def split(seed):
    "Training and test pictures, (m, 1, 8, 8) from 0 to 1, and their labels."
    digits = load_digits()
    return train_test_split(
        (digits.images / 16).astype(np.float32)[:, None],
        digits.target,
        test_size=0.2,
        stratify=digits.target,
        random_state=seed,
    )


def run(seed, channels, epochs, batch_size, lr, weight_decay, **changes):
    "The network after its last epoch, and the data."
    data = x, _, y, _ = split(seed)
    rng = np.random.default_rng(seed)
    model = network(channels, rng)
    optimizer = AdamW(model.params, lr=lr, weight_decay=weight_decay)
    per_epoch = -(-len(x) // batch_size)
    for epoch in tqdm(range(epochs), desc=f"seed {seed}", unit="epoch"):
        fit(
            model,
            CrossEntropyLoss(),
            optimizer,
            distorted(x, rng, **changes),
            y,
            epochs=1,
            batch_size=batch_size,
            rng=rng,
            progress=False,
            schedule=lambda step: cosine_lr(  # noqa: B023
                epoch * per_epoch + step,  # noqa: B023
                lr,
                epochs * per_epoch,
            ),
        )
    return model, data


def result(seed, settings):
    "How many test pictures the network gets right, which not, and the time it took."
    began = time.perf_counter()
    model, (x, x_test, y, y_test) = run(seed, **settings)
    seconds = time.perf_counter() - began
    answer = model(x_test).argmax(axis=1)
    wrong = np.flatnonzero(answer != y_test)
    return {
        "seed": seed,
        "test": len(y_test),
        "accuracy": float((answer == y_test).mean()),
        "training_accuracy": float((model(x).argmax(axis=1) == y).mean()),
        "wrong": [
            {"picture": int(i), "is": int(y_test[i]), "taken_for": int(answer[i])} for i in wrong
        ],
        "seconds": round(seconds, 1),
    }


def results(seeds):
    "The result of each seed, told as it comes."
    runs = []
    for seed in seeds:
        runs.append(result(seed, SETTINGS))
        print(f"seed {seed}: {runs[-1]['accuracy']:.2%} in {runs[-1]['seconds']} s", flush=True)
    mean = float(np.mean([run["accuracy"] for run in runs]))
    print(f"mean {mean:.2%}")
    return mean, runs


def main():
    mean, runs = results(range(5))
    fresh_mean, fresh_runs = results(range(100, 105))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps(
            {
                "machine": machine(["dlnotes", "numba", "numpy", "scikit-learn"]),
                "settings": SETTINGS,
                "mean_accuracy": mean,
                "runs": runs,
                "fresh_mean_accuracy": fresh_mean,
                "fresh_runs": fresh_runs,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
