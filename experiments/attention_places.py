"""Attention before the decoder's step or after it: `python -m experiments.attention_places`.

The same small task, dates in eight locales, and the same settings for both, and for
each of the three scores after the step; five seeds each. The chapter `attention` shows the result,
which is kept in experiments/results/attention_places.json.
"""

import json
import time
from pathlib import Path

import numpy as np

from bench.measure import machine
from dlnotes.attention import AttentionSeq2Seq, BahdanauSeq2Seq
from dlnotes.datasets.dates import FIRST_DAY, LAST_DAY, CharTokenizer, as_examples, date_pairs
from dlnotes.encoder_decoder import greedy_decode
from dlnotes.mlp import CrossEntropyLoss
from dlnotes.training import AdamW, cosine_lr, fit

RESULT = Path(__file__).parent / "results" / "attention_places.json"
PLACES = ["en", "en_GB", "fr", "de", "es", "ru", "ja", "ko"]
SETTINGS = {
    "pairs": 12_000,
    "test": 1000,
    "embedding_dim": 32,
    "hidden_size": 64,
    "epochs": 2,
    "batch_size": 32,
    "lr": 6e-3,
    "warmup": 100,
    "max_norm": 1.0,
}


def result(kind, score, seed):
    "What one training comes to: exact matches on days that were not learnt, and its time."
    s = SETTINGS
    days = np.random.default_rng(seed).permutation(np.arange(FIRST_DAY, LAST_DAY + 1))
    train = date_pairs(s["pairs"], PLACES, days[:30_000], rng=seed)
    test = date_pairs(s["test"], PLACES, days[30_000:], rng=1000 + seed)
    source, target = CharTokenizer(train.texts), CharTokenizer(train.targets)
    inputs, outputs = as_examples(train, source, target)
    model = kind(
        len(source), len(target), s["embedding_dim"], s["hidden_size"], score=score, rng=seed
    )
    steps = s["epochs"] * len(outputs) // s["batch_size"]
    began, cpu = time.perf_counter(), time.process_time()
    history = fit(
        model,
        CrossEntropyLoss(ignore_index=0),
        AdamW(model.params),
        inputs,
        outputs,
        epochs=s["epochs"],
        batch_size=s["batch_size"],
        rng=seed,
        progress=False,
        max_norm=s["max_norm"],
        schedule=lambda step: cosine_lr(step, s["lr"], steps - s["warmup"], warmup=s["warmup"]),
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    src, mask = source.encode(test.texts)
    written = target.decode(greedy_decode(model, src, mask, max_length=12))
    return {
        "model": kind.__name__,
        "score": score,
        "seed": seed,
        "steps": steps,
        "parameters": int(sum(p.size for p in model.params.values())),
        "losses": [round(x, 4) for x in history.train_loss],
        "test": round(float(np.mean(np.equal(written, test.targets))), 4),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def main():
    runs = []
    kinds = [
        (BahdanauSeq2Seq, "general"),
        (AttentionSeq2Seq, "general"),
        (AttentionSeq2Seq, "dot"),
        (AttentionSeq2Seq, "additive"),
    ]
    for seed in range(5):
        for kind, score in kinds:
            runs.append(result(kind, score, seed))
            print(runs[-1], flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps(
            {
                "machine": machine(["dlnotes", "babel", "numba", "numpy"]),
                "settings": SETTINGS,
                "places": PLACES,
                "runs": runs,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
