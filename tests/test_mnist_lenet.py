"""experiments/mnist_lenet.py from its arguments to its result file, on digits that stand in."""

import gzip
import hashlib
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dlnotes.datasets import images as data

SCRIPT = Path(__file__).parent.parent / "experiments" / "mnist_lenet.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mnist_lenet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(array):
    return gzip.compress(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "scikit-learn's digits, three times as large, as the files of both data sets."
    root, digits = tmp_path_factory.mktemp("data"), load_digits()
    large = np.kron(digits.images, np.ones((3, 3))) * (255 / 16)
    images = np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], digits.target[order].astype(np.uint8)
    arrays = images[:1400], labels[:1400], images[1400:], labels[1400:]
    for name in ("mnist", "fashion-mnist"):
        (root / name).mkdir()
        for file, array in zip(data._MNIST.sha256, arrays):
            (root / name / file).write_bytes(packed(array))
    return root


@pytest.fixture
def run(script, folder, tmp_path, monkeypatch, capsys):
    "Calls the script's `main` with its data and results in temporary folders."
    for source in ("_MNIST", "_FASHION_MNIST"):
        old = getattr(data, source)
        sha256 = {
            file: hashlib.sha256((folder / old.name / file).read_bytes()).hexdigest()
            for file in old.sha256
        }
        monkeypatch.setattr(
            data, source, old._replace(mirrors=("http://127.0.0.1:9/",), sha256=sha256)
        )

    def call(*arguments):
        script.main(
            ["--data", str(folder), "--results", str(tmp_path / "new" / "results"), *arguments]
        )
        name = "fashion_mnist_lenet" if "--fashion" in arguments else "mnist_lenet"
        result = json.loads((tmp_path / "new" / "results" / f"{name}.json").read_text())
        return result, capsys.readouterr().out

    return call


def test_it_learns_and_writes_down_what_it_did(run):
    result, out = run("--epochs", "3", "--seed", "3", "4", "--batch-size", "32")
    assert result["experiment"] == "LeNet-5 on MNIST" and "Fashion" not in out
    assert [r["seed"] for r in result["runs"]] == [3, 4]
    accuracies = [r["test_accuracy"] for r in result["runs"]]
    assert min(accuracies) > 0.85  # measured: 0.91 to 0.96 over ten seeds
    assert np.isclose(result["mean_test_accuracy"], np.mean(accuracies), atol=1e-4)
    assert result["runs"][0]["test_loss"] != result["runs"][1]["test_loss"]
    for r in result["runs"]:
        assert len(r["train_loss"]) == 3 and r["train_loss"][-1] < r["train_loss"][0]
        assert f"seed {r['seed']}: {r['test_accuracy']:.2%} of the test images right" in out
    assert result["settings"] == {
        "images": 1400,
        "epochs": 3,
        "batch_size": 32,
        "optimizer": "AdamW",
        "lr": 2e-3,
        "schedule": "cosine_lr",
    }
    assert set(result["versions"]) == {"python", "dlnotes", "numba", "numpy"}
    assert "1400 images to learn from, 397 for the test" in out
    assert f"mean {np.mean(accuracies):.2%}" in out


def test_the_same_seed_gives_the_same_result(run):
    twice = [run("--epochs", "1", "--limit", "200", "--seed", "7")[0]["runs"][0] for _ in range(2)]
    for r in twice:
        del r["seconds"]
    assert twice[0] == twice[1]


def test_clothes_and_a_limit(run):
    result, out = run("--fashion", "--epochs", "1", "--limit", "70")
    assert result["experiment"] == "LeNet-5 on Fashion-MNIST"
    assert result["settings"]["images"] == 70 and "70 images to learn from" in out


def test_the_network_is_lenet_5(script):
    model = script.lenet(np.random.default_rng(0))
    assert [w.shape for w in model.params.values()] == [
        (6, 1, 5, 5),
        (6,),
        (16, 6, 5, 5),
        (16,),
        (120, 400),
        (120,),
        (84, 120),
        (84,),
        (10, 84),
        (10,),
    ]
    assert sum(w.size for w in model.params.values()) == 61_706
    assert all(w.dtype == np.float32 for w in model.params.values())
    assert model(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 10)


@pytest.mark.parametrize(
    "wrong",
    [["--epochs", "0"], ["--limit", "0"], ["--seed", "-1"], ["--batch-size", "x"], ["--cloth"]],
)
def test_wrong_arguments_end_it_with_a_word(script, wrong, capsys):
    with pytest.raises(SystemExit):
        script.main(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_without_files_and_network_it_says_what_is_missing(script, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MNIST", data._MNIST._replace(mirrors=("http://127.0.0.1:9/",)))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(OSError, match="could not fetch train-images-idx3-ubyte.gz"):
        script.main(["--data", str(tmp_path)])
