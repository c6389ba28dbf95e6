"""The perceptron's epoch beside scikit-learn's: `make bench`, or `python -m bench.perceptron`.

Both get the same data and the same settings, in one process, in turn. An epoch's time is that of
a fit of 11 epochs less that of a fit of one, divided by ten, so that neither pays for its
preparations. That both learn the same is checked first.
"""

import warnings

import numpy as np
from sklearn.linear_model import Perceptron as SklearnPerceptron

from bench.measure import interleaved, write
from dlnotes import Perceptron

ROWS, REPEATS = 100_000, 7


def data(inputs, dtype, turned):
    "Labels by a hyperplane, a share of them `turned` round; the first example is a zero."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, inputs)).astype(dtype)
    y = (x @ rng.normal(size=inputs) >= 0) ^ (rng.random(ROWS) < turned)
    first = y.argmin()
    x[[0, first]], y[[0, first]] = x[[first, 0]], y[[first, 0]]
    return x, y.astype(int)


def check(x, y):
    "The same weights where the rule is the same: in the given order, from a first mistake."
    ours = Perceptron(shuffle=False, max_iter=1).fit(x[:1000], y[:1000])
    theirs = SklearnPerceptron(shuffle=False, max_iter=1, tol=None).fit(x[:1000], y[:1000])
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-4)
    assert (ours.predict(x) == theirs.predict(x)).mean() > 0.9999


def compare(x, y, shuffle):
    "Milliseconds an epoch, ours, theirs and of a mere sum, and the spread of the ratio."

    def run(model, epochs, **settings):
        return lambda: model(shuffle=shuffle, max_iter=epochs, random_state=0, **settings).fit(x, y)

    times = interleaved(
        [
            run(Perceptron, 1),
            run(Perceptron, 11),
            run(SklearnPerceptron, 1, tol=None),
            run(SklearnPerceptron, 11, tol=None),
            x.sum,
        ],
        REPEATS,
    )
    ours, theirs = (times[:, 1] - times[:, 0]) / 10, (times[:, 3] - times[:, 2]) / 10
    low, ratio, high = np.percentile(theirs / ours, [25, 50, 75]).round(1).tolist()
    ours, theirs, reading = (1e3 * np.median([ours, theirs, times[:, 4]], axis=1)).round(2).tolist()
    return {
        "ours_ms": ours,
        "theirs_ms": theirs,
        "ratio": ratio,
        "quartiles": [low, high],
        "reading_ms": reading,
    }


def main():
    warnings.simplefilter("ignore")
    rows = []
    for dtype in ("float32", "float64"):
        for inputs in (20, 200):
            for turned in (0.0, 0.05):
                x, y = data(inputs, dtype, turned)
                check(x, y)
                for order in ("shuffled", "given"):
                    rows.append(
                        {
                            "inputs": inputs,
                            "dtype": dtype,
                            "turned": turned,
                            "order": order,
                            **compare(x, y, order == "shuffled"),
                        }
                    )
                    print(*rows[-1].values(), sep="  ", flush=True)
    write("perceptron", rows, ["scikit-learn"])


if __name__ == "__main__":
    main()
