"""Dates in many languages to ISO 8601, by four models: `python -m experiments.dates MODEL`.

MODEL is seq2seq, attention, transformer or transformer_added; the last one's self-attention does
not turn queries and keys by their places, which are only added to the embeddings. Each text lists
up to three dates (`--dates`), as one alone is no test of a memory. `--seeds 0 1 2 3 4` names the
seeds of first weights, order and data; a seed's days of training, validation and test are its own,
too (dlnotes.datasets.dates). `--threads` limits the threads. The test is looked at once, after the
last step.
The chapters show the results, which are kept in experiments/results/dates_MODEL.json, with the
time by the clock and that which the processors worked for the training; where other programs ran
beside it, the second says more.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.measure import machine
from dlnotes.core.execution import set_num_threads
from dlnotes.datasets.dates import CharTokenizer, as_examples, date_splits
from dlnotes.encoder_decoder import beam_search, greedy_decode
from dlnotes.mlp import CrossEntropyLoss
from dlnotes.training import AdamW, clip_grad_norm, cosine_lr

RESULTS = Path(__file__).parent / "results"
LENGTHS = [0, 10, 15, 20, 25, 30, 40, 50, 60, 80, 1000]
# module, class, arguments beside the sizes of the vocabularies, and how it is trained
MODELS = {
    "seq2seq": (
        "dlnotes.encoder_decoder",
        "Seq2Seq",
        {"embedding_dim": 32, "hidden_size": 128},
        {
            "pairs": 40_000,
            "epochs": 6,
            "batch_size": 64,
            "lr": 5e-3,
            "warmup": 100,
            "weight_decay": 0.01,
            "max_norm": 1.0,
            "label_smoothing": 0.0,
        },
    ),
    "attention": (
        "dlnotes.attention",
        "AttentionSeq2Seq",
        {"embedding_dim": 32, "hidden_size": 96},
        {
            "pairs": 40_000,
            "epochs": 4,
            "batch_size": 64,
            "lr": 5e-3,
            "warmup": 100,
            "weight_decay": 0.01,
            "max_norm": 1.0,
            "label_smoothing": 0.0,
        },
    ),
    "transformer_added": (
        "dlnotes.transformer",
        "Transformer",
        {
            "d_model": 64,
            "nhead": 4,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "dim_feedforward": 256,
            "dropout": 0.0,
            "norm_first": True,
        },
        {
            "pairs": 40_000,
            "epochs": 4,
            "batch_size": 64,
            "lr": 4e-3,
            "warmup": 300,
            "weight_decay": 0.01,
            "max_norm": 1.0,
            "label_smoothing": 0.0,
        },
    ),
}
MODELS["transformer"] = (
    *MODELS["transformer_added"][:2],
    {**MODELS["transformer_added"][2], "rotary": True},
    MODELS["transformer_added"][3],
)


def build(name, source, target, seed):
    "The model of that name, with its first weights."
    module, kind, arguments, _ = MODELS[name]
    return getattr(importlib.import_module(module), kind)(
        len(source), len(target), **arguments, rng=seed
    )


def batches(mask, size, rng):
    "Rows of each batch: in random order, but those of one batch are about equally long."
    order = rng.permutation(len(mask))
    lengths = mask.sum(axis=1)
    parts = [order[i : i + 16 * size] for i in range(0, len(order), 16 * size)]
    for part in parts:
        part = part[np.argsort(lengths[part], kind="stable")]
        cut = [part[i : i + size] for i in range(0, len(part), size)]
        for i in rng.permutation(len(cut)):
            yield cut[i]


def trimmed(rows, src, tgt_in, mask, tgt_out):
    "Those rows, without the columns that are padding in all of them."
    s, t = mask[rows].sum(axis=1).max(), (tgt_out[rows] != 0).sum(axis=1).max()
    return (src[rows, :s], tgt_in[rows, :t], mask[rows, :s]), tgt_out[rows, :t]


def train(
    model,
    examples,
    seed,
    pairs,
    epochs,
    batch_size,
    lr,
    warmup,
    weight_decay,
    max_norm,
    label_smoothing,
):
    "Train the model in place; the mean loss of each epoch."
    (src, tgt_in, mask), tgt_out = examples
    loss = CrossEntropyLoss(ignore_index=0, label_smoothing=label_smoothing)
    optimizer = AdamW(model.params, lr=lr, weight_decay=weight_decay)
    rng, steps, losses = np.random.default_rng(seed), -(-pairs // batch_size), []
    model.train()
    with tqdm(total=epochs * steps, desc=f"seed {seed}", unit="step") as bar:
        for _ in range(epochs):
            total = 0.0
            for rows in batches(mask, batch_size, rng):
                inputs, wanted = trimmed(rows, src, tgt_in, mask, tgt_out)
                optimizer.lr = cosine_lr(bar.n, lr, epochs * steps - warmup, warmup=warmup)
                answer, cache = model.forward(*inputs)
                value, back = loss.forward(answer, wanted)
                _, grads = model.backward(loss.backward(back), cache, input_grad=False)
                clip_grad_norm(grads, max_norm)
                optimizer.step(grads)
                total += value / steps
                bar.update()
            losses.append(total)
            bar.set_postfix(loss=f"{total:.4f}")
    model.eval()
    return losses


def answers(model, texts, source, target, decode, size=200):
    "What the model writes for each text, in batches of about equal length."
    src, mask = source.encode(texts)
    order, written = np.argsort(mask.sum(axis=1), kind="stable"), [""] * len(texts)
    for i in range(0, len(order), size):
        rows = order[i : i + size]
        s = mask[rows].sum(axis=1).max()
        ids = decode(model, src[rows, :s], mask[rows, :s])
        for row, text in zip(rows, target.decode(ids)):
            written[row] = text
    return written


def by_length(pairs, right):
    "[from, to below, texts, share that is right] of the input's lengths."
    lengths = np.array([len(text) for text in pairs.texts])
    rows = []
    for low, high in zip(LENGTHS, LENGTHS[1:]):
        some = (lengths >= low) & (lengths < high)
        if some.any():
            rows.append([low, high, int(some.sum()), round(float(right[some].mean()), 4)])
    return rows


def own_answers(model, src, mask, steps):
    "Tokens (m, steps) that the model writes, 0 after the end."
    ids = greedy_decode(model, src, mask, max_length=steps)
    return np.pad(ids, ((0, 0), (0, steps - ids.shape[1])))


def exposure(model, pairs, source, target):
    """How wrong tokens are when the model is fed the truth, and when its own answers.

    Then the same of the tokens after the first that is wrong, in its own answers.
    """
    (src, tgt_in, mask), tgt_out = as_examples(pairs, source, target)
    forced = np.concatenate(
        [
            model(src[i : i + 200], tgt_in[i : i + 200], mask[i : i + 200]).argmax(1)
            for i in range(0, len(src), 200)
        ]
    )
    written = np.concatenate(
        [
            own_answers(model, src[i : i + 200], mask[i : i + 200], tgt_out.shape[1])
            for i in range(0, len(src), 200)
        ]
    )
    real, wrong = tgt_out != 0, written != tgt_out
    after = real & (np.cumsum(wrong & real, axis=1) - (wrong & real) > 0)
    return {
        "forced": share((forced != tgt_out)[real]),
        "own": share(wrong[real]),
        "forced_after": share((forced != tgt_out)[after]),
        "own_after": share(wrong[after]),
    }


def share(right):
    return round(float(np.mean(right)), 4)


def result(name, seed, dates):
    "What one training comes to."
    settings = MODELS[name][3]
    splits = date_splits(settings["pairs"], 2000, per_text=dates, seed=seed)
    source, target = CharTokenizer(splits.train.texts), CharTokenizer(splits.train.targets)
    examples = as_examples(splits.train, source, target)
    model = build(name, source, target, seed)
    began, worked, most = time.perf_counter(), time.process_time(), 11 * dates + 4
    losses = train(model, examples, seed, **settings)
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked

    def greedy(m, src, mask):
        return greedy_decode(m, src, mask, max_length=most)

    def beam(m, src, mask):
        return beam_search(m, src, mask, beam_size=4, max_length=most)[0]

    def correct(pairs, decode):
        written = answers(model, pairs.texts, source, target, decode)
        return np.array([a == b for a, b in zip(written, pairs.targets)]), written

    right, written = correct(splits.test, greedy)
    count = np.array([text.count(" ") + 1 for text in splits.test.targets])
    unseen, _ = correct(splits.unseen, greedy)
    places = np.array(splits.unseen.locales)
    return {
        "seed": seed,
        "parameters": int(sum(p.size for p in model.params.values())),
        "seconds": round(seconds, 1),
        "processor_seconds": round(cpu, 1),
        "losses": [round(x, 5) for x in losses],
        "test": share(right),
        "test_beam_4": share(correct(splits.test, beam)[0]),
        "validation": share(correct(splits.validation, greedy)[0]),
        "exposure": exposure(model, splits.test, source, target),
        "by_dates": [
            [int(k), int((count == k).sum()), share(right[count == k])] for k in np.unique(count)
        ],
        "by_length": by_length(splits.test, right),
        "by_locale": {
            code: share(right[np.array(splits.test.locales) == code])
            for code in sorted(set(splits.test.locales))
        },
        "unseen": share(unseen),
        "unseen_by_locale": {code: share(unseen[places == code]) for code in sorted(set(places))},
        "failures": [
            [splits.test.locales[i], splits.test.texts[i], splits.test.targets[i], written[i]]
            for i in np.flatnonzero(~right)[:12]
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--dates", type=int, default=3, help="up to how many in a text (3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    set_num_threads(args.threads)
    module, kind, arguments, training = MODELS[args.model]
    path = RESULTS / f"dates_{args.model}{'' if args.dates == 3 else f'_{args.dates}'}.json"
    path.parent.mkdir(exist_ok=True)
    runs = []
    for seed in args.seeds:
        run = result(args.model, seed, args.dates)
        runs.append(run)
        print(
            f"seed {seed}: test {run['test']:.2%}, beam {run['test_beam_4']:.2%}, unseen "
            f"locales {run['unseen']:.2%}, {run['seconds']} s, processors "
            f"{run['processor_seconds']} s",
            flush=True,
        )
        path.write_text(
            json.dumps(
                {
                    "machine": machine(["dlnotes", "babel", "numba", "numpy"]),
                    "threads": args.threads,
                    "model": f"{module}.{kind}",
                    "arguments": arguments,
                    "dates": args.dates,
                    "training": training,
                    "runs": runs,
                },
                indent=1,
                ensure_ascii=False,
            )
            + "\n",
            encoding="utf-8",
        )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
