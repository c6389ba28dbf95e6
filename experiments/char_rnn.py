"""A recurrent network that learns Python's help by letters: `python -m experiments.char_rnn`.

Truncated backpropagation through time, five seeds. The last 40,000 letters are held back; as the
settings were chosen from five by their cost on these, five runs follow with the first 40,000 held
back instead. Beside them stand tables of counts, each with the best number of letters in memory.
The text differs a little between versions of Python. The chapter `rnn` shows the result, which is
kept in experiments/results/char_rnn.json.
"""

import json
import re
import time
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tqdm import tqdm

from bench.measure import machine
from dlnotes.core.layers import Sequential
from dlnotes.mlp import CrossEntropyLoss, Linear, softmax
from dlnotes.rnn import RNN, Embedding, SequenceModel, Transpose
from dlnotes.training import AdamW, clip_grad_norm, cosine_lr

RESULT = Path(__file__).parent / "results" / "char_rnn.json"
SETTINGS = {
    "embedding_dim": 32,
    "hidden_size": 256,
    "streams": 32,
    "length": 50,
    "steps": 2000,
    "lr": 5e-3,
    "max_norm": 1.0,
}
TEMPERATURES = (0.1, 0.5, 1.0, 1.5)
TEXT = re.sub(r"[^a-z.,()']+", " ", " ".join(topics[name] for name in sorted(topics)).lower())
LETTERS = sorted(set(TEXT))
LOSS = CrossEntropyLoss()


def streams(text, n):
    "The text as numbers of letters, in `n` rows of equal length."
    ids = np.array([LETTERS.index(c) for c in text])
    return ids[: len(ids) // n * n].reshape(n, -1)


def network(seed, embedding_dim, hidden_size):
    "Embedding, one recurrent layer, logits (m, letters, T)."
    rng, n = np.random.default_rng(seed), len(LETTERS)
    head = Sequential(Linear(hidden_size, n, rng=rng), Transpose(1, 2))
    return SequenceModel(
        RNN(embedding_dim, hidden_size, rng=rng),
        head,
        embedding=Embedding(n, embedding_dim, rng=rng),
    )


def learn_piece(model, x, y, state):
    "Gradients on a piece, which go no further back, and the state to go on from."
    rows, below = model.embedding.forward(x)
    (h, state), middle = model.recurrent.forward(rows, state)
    logits, above = model.head.forward(h)
    grad, head = model.head.backward(LOSS.backward(LOSS.forward(logits, y)[1]), above)
    (grad, _), recurrent = model.recurrent.backward((grad, None), middle)
    parts = {
        "embedding": model.embedding.backward(grad, below)[1],
        "recurrent": recurrent,
        "head": head,
    }
    return {f"{k}.{name}": g for k, part in parts.items() for name, g in part.items()}, state


def run(known, seed, embedding_dim, hidden_size, streams_, length, steps, lr, max_norm):
    "A network that has learnt from the text `known`."
    model, rows, state = network(seed, embedding_dim, hidden_size), streams(known, streams_), None
    optimizer = AdamW(model.params)
    for step in tqdm(range(steps), desc=f"seed {seed}", unit="piece"):
        at = step * length % (rows.shape[1] - length)
        grads, state = learn_piece(
            model, rows[:, at : at + length], rows[:, at + 1 : at + length + 1], state
        )
        clip_grad_norm(grads, max_norm)
        optimizer.lr = cosine_lr(step, lr, steps)
        optimizer.step(grads)
    return model


def bits(model, unseen):
    "Mean cost of a letter, guessed from all before it."
    rows = streams(unseen, 8)
    return LOSS(model(rows[:, :-1]), rows[:, 1:]) / np.log(2)


def write(model, start, n, temperature, rng):
    "`n` letters that go on from `start`."
    ids, state, written = streams(start, 1), None, ""
    for _ in range(n):
        h, state = model.recurrent(model.embedding(ids), state)
        p = softmax(model.head(h[:, -1:])[0, :, 0].astype(float) / temperature)
        ids = np.array([[min((p.cumsum() < rng.random()).sum(), len(p) - 1)]])
        written += LETTERS[ids[0, 0]]
    return written


def best_table(known, unseen, extra=0.1):
    "The cheapest table of counts of k letters and the next, and its cost, as in the chapter."
    costs = []
    for k in range(9):
        after, n = (
            Counter(known[i : i + size] for i in range(len(known) - size + 1))
            for size in (k + 1, k)
        )
        p = [
            (after[unseen[i - k : i + 1]] + extra) / (n[unseen[i - k : i]] + len(LETTERS) * extra)
            for i in range(8, len(unseen))
        ]
        costs.append(-np.log2(p).mean())
    return {"k": int(np.argmin(costs)), "bits": float(min(costs))}


def results(known, unseen, seeds):
    "The result of each seed, and the last network."
    runs, settings = [], {("streams_" if k == "streams" else k): v for k, v in SETTINGS.items()}
    for seed in seeds:
        began = time.perf_counter()
        model = run(known, seed, **settings)
        seconds = time.perf_counter() - began
        runs.append(
            {
                "seed": seed,
                "bits": float(bits(model, unseen)),
                "bits_on_text_learnt_from": float(bits(model, known[:40_000])),
                "seconds": round(seconds, 1),
            }
        )
        print(f"seed {seed}: {runs[-1]['bits']:.3f} bits in {seconds:.0f} s", flush=True)
    return runs, model


def main():
    known, unseen = TEXT[:-40_000], TEXT[-40_000:]
    runs, model = results(known, unseen, range(5))
    written = {
        str(t): write(model, known[:20], 150, t, np.random.default_rng(0)) for t in TEMPERATURES
    }
    fresh_runs, _ = results(TEXT[40_000:], TEXT[:40_000], range(100, 105))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps(
            {
                "machine": machine(["dlnotes", "numba", "numpy"]),
                "letters": len(TEXT),
                "settings": SETTINGS,
                "runs": runs,
                "best_table": best_table(known, unseen),
                "written": written,
                "fresh_runs": fresh_runs,
                "fresh_best_table": best_table(TEXT[40_000:], TEXT[:40_000]),
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
