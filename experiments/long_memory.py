"""How far back RNN, GRU and LSTM remember: `python -m experiments.long_memory`.

Two tasks, at growing lengths, from several seeds each. *Adding*: two of many numbers are marked;
the answer is their sum. Who always answers 1 has a mean squared error of 1/6. *Copying*: three
letters come first, then nothing for a while, then the three are to be repeated. Who guesses has a
quarter of them right. Each step of training sees fresh examples; training ends when the error over
examples kept for that is small, or after a number of steps. What is reported is measured on further
examples, seen once, with the weights that were best on those kept.

A third part asks what the first bias of the forget gate does. Settings were chosen on seeds 0 to 2.
The chapter `lstm` shows the result, which is kept in experiments/results/long_memory.json.
"""

import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.measure import machine
from dlnotes.core.layers import Sequential
from dlnotes.gradients import orthogonal
from dlnotes.lstm import GRU, LSTM, chrono_init
from dlnotes.mlp import CrossEntropyLoss, Linear, MSELoss
from dlnotes.rnn import RNN, SequenceModel, Transpose
from dlnotes.training import AdamW, fit

RESULT = Path(__file__).parent / "results" / "long_memory.json"
LETTERS, KEPT = 4, 3  # of the copying task: how many there are, and how many are to be repeated
SETTINGS = {
    "hidden": 32,
    "batch_size": 32,
    "max_norm": 1.0,
    "round": 100,
    "rates": {"RNN": 3e-3, "RNN, ReLU": 1e-3, "GRU": 1e-2, "LSTM": 1e-2},
    "lengths": [10, 20, 50, 100, 200],
    "seeds": list(range(100, 105)),
    "steps": {"adding": 3000, "copying": 4000},
    "solved": {"adding": 0.01, "copying": 0.99},
    "starts": ["as drawn", "1", "chrono"],
    "start_length": 50,
    "start_seeds": list(range(100, 105)),
}


def adding(rng, m, T):
    "Lists of T numbers from 0 to 1, two of them marked, and the sum of these: (m, T, 2), (m, 1)."
    x = np.zeros((m, T, 2), np.float32)
    x[:, :, 0] = rng.random((m, T))
    first, second = rng.integers(T // 2, size=m), rng.integers(T // 2, T, size=m)
    x[range(m), first, 1] = x[range(m), second, 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(axis=1, keepdims=True)


def copying(rng, m, T):
    "Three letters, T steps of nothing, the last of which says 'now', and the letters again."
    letters = rng.integers(LETTERS, size=(m, KEPT))
    ids = np.full((m, KEPT + T + KEPT), LETTERS)  # LETTERS stands for nothing, and one more for now
    ids[:, :KEPT], ids[:, KEPT + T - 1] = letters, LETTERS + 1
    y = np.full(ids.shape, -100)  # a target that the loss leaves out
    y[:, -KEPT:] = letters
    return np.eye(LETTERS + 2, dtype=np.float32)[ids], y


def recurrent(cell, inputs, width, T, start, rng):
    "A recurrent layer with first weights that suit a sequence of T steps."
    if cell.startswith("RNN"):
        layer = RNN(inputs, width, nonlinearity="tanh" if cell == "RNN" else "relu", rng=rng)
        layer.params["weight_hh_l0"][...] = (
            orthogonal((width, width), rng=rng) if cell == "RNN" else np.eye(width)
        )
        return layer
    layer = {"GRU": GRU, "LSTM": LSTM}[cell](inputs, width, rng=rng)
    if start == "chrono":
        chrono_init(layer, T, rng=rng)
    elif start == "1":
        layer.params["bias_ih_l0"][width : 2 * width] = 1
        layer.params["bias_hh_l0"][width : 2 * width] = 0
    return layer


def network(task, cell, T, start, rng, hidden):
    "The model, and its loss."
    if task == "adding":
        return SequenceModel(
            recurrent(cell, 2, hidden, T, start, rng), Linear(hidden, 1, rng=rng), last=True
        ), MSELoss()
    head = Sequential(Linear(hidden, LETTERS, rng=rng), Transpose(1, 2))
    layer = recurrent(cell, LETTERS + 2, hidden, T, start, rng)
    return SequenceModel(layer, head), CrossEntropyLoss()


def measured(task, model, x, y):
    "Mean squared error for adding, share of letters that are right for copying."
    answers = np.concatenate([model(x[i : i + 250]) for i in range(0, len(x), 250)])
    if task == "adding":
        return float(((answers - y) ** 2).mean())
    return float((answers.argmax(axis=1) == y)[:, -KEPT:].mean())


def better(task, a, b):
    "Whether the value `a` is better than `b`; NaN is not."
    return a < b if task == "adding" else a > b


def rounds(task, cell, T, rng, model, loss, settings):
    "Train; after each round, how many steps there were and the value over examples kept for it."
    make, size = {"adding": adding, "copying": copying}[task], settings["batch_size"]
    optimizer = AdamW(model.params, lr=settings["rates"][cell], weight_decay=0)
    kept, each = make(rng, 500, T), settings["round"]
    for done in range(each, settings["steps"][task] + 1, each):
        try:
            fit(
                model,
                loss,
                optimizer,
                *make(rng, size * each, T),
                epochs=1,
                batch_size=size,
                shuffle=False,
                max_norm=settings["max_norm"],
                progress=False,
            )
        except FloatingPointError:  # it has gone to infinity
            return
        yield done, measured(task, model, *kept)


def run(task, cell, T, seed, start="chrono", settings=SETTINGS, bar=None):
    "Train once; how many steps it took, and what came of it, with the weights of the best round."
    began, rng = time.process_time(), np.random.default_rng([seed, T])
    model, loss = network(task, cell, T, start, rng, settings["hidden"])
    best, steps, goal = 1.0 if task == "adding" else 0.0, 0, settings["solved"][task]
    state = {k: a.copy() for k, a in model.state_dict().items()}
    for steps, value in rounds(task, cell, T, rng, model, loss, settings):
        if better(task, value, best):
            best, state = value, {k: a.copy() for k, a in model.state_dict().items()}
        if bar is not None:
            bar.set_postfix_str(f"{task} {cell} {T} seed {seed} step {steps}: {value:.3f}")
        if better(task, best, goal):
            break
    model.load_state_dict(state)
    x, y = {"adding": adding, "copying": copying}[task](rng, 1000, T)
    return {
        "task": task,
        "cell": cell,
        "length": T,
        "seed": seed,
        "start": start,
        "steps": steps,
        "solved": better(task, best, goal),
        "value": round(measured(task, model, x, y), 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def plan(settings):
    "The arguments of all runs."
    for task in ("adding", "copying"):
        for T in settings["lengths"]:
            for cell in settings["rates"]:
                for seed in settings["seeds"]:
                    yield "growing", (task, cell, T, seed, "chrono")
    for task in ("adding", "copying"):
        for start in settings["starts"]:
            for seed in settings["start_seeds"]:
                yield "starts", (task, "LSTM", settings["start_length"], seed, start)


def results(settings=SETTINGS):
    "All runs, told as they come."
    runs = {"growing": [], "starts": []}
    with tqdm(list(plan(settings)), unit="run") as bar:
        for part, (task, cell, T, seed, start) in bar:
            one = run(task, cell, T, seed, start, settings, bar)
            runs[part].append(one)
            tqdm.write(
                f"{task} {cell} {T} seed {seed} {start}: {one['value']:.4f} after "
                f"{one['steps']} steps, {one['cpu_seconds']} s"
            )
    return runs


def write(runs):
    "Keep the runs, with the settings and the machine."
    seconds = sum(run["cpu_seconds"] for part in runs.values() for run in part)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps(
            {
                "machine": machine(["dlnotes", "numba", "numpy"]),
                "settings": SETTINGS,
                "letters": LETTERS,
                "kept": KEPT,
                **runs,
                "cpu_seconds": round(seconds),
            },
            indent=1,
        )
        + "\n"
    )


def main():
    write(results())


if __name__ == "__main__":
    main()
