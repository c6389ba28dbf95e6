"""Where the norm stands, and what warm-up is good for: `python -m experiments.norm_place`.

Eight encoder layers learn to write eight random digits backwards in 150 steps of AdamW: with the
norm before or behind each sublayer, at several learning rates, from the first step on or reached
along a straight line over 100 steps, from five seeds. What is kept is the share of digits that
are right in rows that were not learnt from. The chapter `transformer` shows the result, which is
kept in experiments/results/norm_place.json, and defines the same network and task.
"""

import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.measure import machine
from dlnotes.core.layers import Sequential
from dlnotes.gradients import LayerNorm
from dlnotes.mlp import CrossEntropyLoss, Linear
from dlnotes.rnn import Transpose
from dlnotes.training import AdamW, evaluate, fit
from dlnotes.transformer import TransformerEncoderLayer, sinusoidal_positions

RESULT = Path(__file__).parent / "results" / "norm_place.json"
SETTINGS = {
    "layers": 8,
    "d_model": 32,
    "nhead": 4,
    "dim_feedforward": 64,
    "digits": 8,
    "batch_size": 16,
    "steps": 150,
    "held_out": 200,
    "warmups": [0, 100],
    "rates": [1e-3, 2e-3, 4e-3, 8e-3, 16e-3],
    "seeds": [0, 1, 2, 3, 4],
}


def task(digits, steps, batch_size, held_out, d_model, **_):
    "Rows of digits as vectors with positions, and the digits from the last to the first."
    rng = np.random.default_rng(1)
    ids = rng.integers(10, size=(held_out + steps * batch_size, digits))
    table = rng.normal(size=(10, d_model))
    rows = table[ids] + sinusoidal_positions(digits, d_model)
    return rows.astype(np.float32), np.ascontiguousarray(ids[:, ::-1])


def network(norm_first, seed, layers, d_model, nhead, dim_feedforward, **_):
    rng = np.random.default_rng(seed)
    parts = [
        TransformerEncoderLayer(d_model, nhead, dim_feedforward, 0, norm_first=norm_first, rng=rng)
        for _ in range(layers)
    ]
    return Sequential(*parts, LayerNorm(d_model), Linear(d_model, 10, rng=rng), Transpose(1, 2))


def right(norm_first, rate, warmup, seed):
    "The share of held-out digits that are right after the training."
    rows, backwards = task(**SETTINGS)
    model, loss, n = network(norm_first, seed, **SETTINGS), CrossEntropyLoss(), SETTINGS["held_out"]
    fit(
        model,
        loss,
        AdamW(model.params, rate),
        rows[n:],
        backwards[n:],
        epochs=1,
        batch_size=SETTINGS["batch_size"],
        rng=seed,
        progress=False,
        schedule=lambda step: rate * min(1, (step + 1) / max(1, warmup)),
    )
    return round(float(evaluate(model, loss, rows[:n], backwards[:n])[1]), 4)


def main():
    cases = [
        (norm_first, warmup, rate)
        for norm_first in (True, False)
        for warmup in SETTINGS["warmups"]
        for rate in SETTINGS["rates"]
    ]
    began = time.perf_counter()
    runs = [
        {
            "norm_first": norm_first,
            "warmup": warmup,
            "rate": rate,
            "right": [right(norm_first, rate, warmup, seed) for seed in SETTINGS["seeds"]],
        }
        for norm_first, warmup, rate in tqdm(cases, unit="case")
    ]
    RESULT.write_text(
        json.dumps(
            {
                "machine": machine(["dlnotes", "numba", "numpy"]),
                "settings": SETTINGS,
                "seconds": round(time.perf_counter() - began, 1),
                "runs": runs,
            },
            indent=1,
        )
        + "\n",
        "utf-8",
    )
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
