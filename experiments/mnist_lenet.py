"""LeNet-5 on MNIST or Fashion-MNIST: trains it, prints its test accuracy, writes a result file.

    python experiments/mnist_lenet.py --epochs 5 --seed 0 1 2
    python experiments/mnist_lenet.py --fashion

The files are downloaded the first time (11.6 or 30.9 MB): pip install 'dlnotes[data]'.
"""

import argparse
import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dlnotes.cnn import Conv2d, Flatten, MaxPool2d
from dlnotes.core.layers import Sequential
from dlnotes.datasets.images import as_images, fashion_mnist, mnist
from dlnotes.mlp import CrossEntropyLoss, Linear, ReLU
from dlnotes.training import AdamW, cosine_lr, evaluate, fit

PACKAGES = ("dlnotes", "numba", "numpy")


def lenet(rng):
    "LeNet-5 (LeCun et al. 1998) as it is built today: ReLU, the largest of each four, 10 logits."
    return Sequential(
        Conv2d(1, 6, 5, padding=2, rng=rng),
        ReLU(),
        MaxPool2d(2),  # (n, 6, 14, 14)
        Conv2d(6, 16, 5, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Flatten(),  # (n, 400)
        Linear(400, 120, rng=rng),
        ReLU(),
        Linear(120, 84, rng=rng),
        ReLU(),
        Linear(84, 10, rng=rng),
    )


def train(train_set, test_set, seed, args):
    "A fresh network, trained; test accuracy after its last epoch, with how it came about."
    rng = np.random.default_rng(seed)
    model, loss, began = lenet(rng), CrossEntropyLoss(), time.perf_counter()
    optimizer = AdamW(model.params, args.lr)
    steps = args.epochs * -(-len(train_set[0]) // args.batch_size)

    def tell(history):
        print(
            f"seed {seed}, epoch {history.epochs[-1]} of {args.epochs}: "
            f"loss {history.train_loss[-1]:.4f}, {history.seconds[-1]:.1f} s",
            flush=True,
        )

    history = fit(
        model,
        loss,
        optimizer,
        *train_set,
        epochs=args.epochs,
        batch_size=args.batch_size,
        rng=rng,
        callback=tell,
        schedule=lambda step: cosine_lr(step, args.lr, steps),
    )
    test_loss, accuracy = evaluate(model, loss, *test_set)
    return {
        "seed": seed,
        "test_accuracy": round(accuracy, 4),
        "test_loss": round(test_loss, 4),
        "train_loss": [round(value, 4) for value in history.train_loss],
        "seconds": round(time.perf_counter() - began, 1),
    }


def whole(least):
    "What argparse takes for a whole number that is not under `least`."

    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        return int(text)

    number.__name__ = "whole number"  # as messages call it
    return number


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion", action="store_true", help="clothes in place of digits")
    parser.add_argument("--epochs", type=whole(1), default=5)
    parser.add_argument("--seed", type=whole(0), nargs="+", default=[0], help="one run for each")
    parser.add_argument("--limit", type=whole(1), help="learn from so many images only")
    parser.add_argument("--batch-size", type=whole(1), default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--data", type=Path, help="the folder that keeps the data sets")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    data = (fashion_mnist if args.fashion else mnist)(args.data)
    x, y = data.train_images[: args.limit], data.train_labels[: args.limit]
    train_set, test_set = (as_images(x), y), (as_images(data.test_images), data.test_labels)
    name = "Fashion-MNIST" if args.fashion else "MNIST"
    print(f"LeNet-5 on {name}: {len(x)} images to learn from, {len(test_set[0])} for the test")
    runs = [train(train_set, test_set, seed, args) for seed in args.seed]
    accuracies = [run["test_accuracy"] for run in runs]
    result = {
        "experiment": f"LeNet-5 on {name}",
        "date": datetime.date.today().isoformat(),
        "mean_test_accuracy": round(float(np.mean(accuracies)), 4),
        "runs": runs,
        "settings": {
            "images": len(x),
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            "optimizer": "AdamW",
            "lr": args.lr,
            "schedule": "cosine_lr",
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{'fashion_' if args.fashion else ''}mnist_lenet.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for run in runs:
        print(
            f"seed {run['seed']}: {run['test_accuracy']:.2%} of the test images right, "
            f"{run['seconds']} s"
        )
    print(f"mean {np.mean(accuracies):.2%}; written to {path}")


if __name__ == "__main__":
    main()
