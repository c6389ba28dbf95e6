"""The package as other programs meet it: imports, names, types, the kernels' cache, the wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import dlnotes
from dlnotes._modidx import d as index

REPO = Path(__file__).parent.parent
MODULES = sorted(name.removeprefix("dlnotes.") for name in index["syms"])
PUBLIC = {}
for module in MODULES:
    here = import_module(f"dlnotes.{module}")  # a constant is had from its module alone
    homes = dlnotes._index()  # kernels are had from their modules alone, as is most of core
    PUBLIC[module] = [
        name
        for name in here.__all__
        if callable(getattr(here, name)) and homes.get(name) == f"dlnotes.{module}"
    ]
CHAPTERS = [module for module in MODULES if "." not in module]
NAMES = sorted(name for names in PUBLIC.values() for name in names)


def python(code, **environment):
    "What a fresh Python prints that runs `code` elsewhere than here."
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPO.parent,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    code = "import sys; before = {*sys.modules}; import dlnotes; print(*{*sys.modules} - before)"
    loaded = {name.partition(".")[0] for name in python(code).split()}
    assert loaded - sys.stdlib_module_names == {"dlnotes"}


def test_a_module_that_needs_nothing_heavy_does_not_load_it():
    code = "import sys; from dlnotes.core.drawing import Stepper; print({*sys.modules} & {%s})"
    assert python(code % "'numba', 'sklearn', 'matplotlib', 'numpy'") == "set()"


def test_nothing_of_the_workshop_is_loaded():
    code = (
        "import sys, dlnotes\nfor name in dir(dlnotes): getattr(dlnotes, name)\n"
        "print({n.partition('.')[0] for n in sys.modules}"
        " & {'nbdev', 'fastcore', 'execnb', 'IPython', 'jupyter_core', 'matplotlib', 'torch'})"
    )
    assert python(code) == "set()"


def test_all_names_can_be_had_and_seen():
    assert set(NAMES) | set(CHAPTERS) <= set(dir(dlnotes))
    for module in CHAPTERS:
        assert getattr(dlnotes, module) is import_module(f"dlnotes.{module}")
    for module in MODULES:
        for name in PUBLIC[module]:
            assert getattr(dlnotes, name) is getattr(import_module(f"dlnotes.{module}"), name)


def test_a_star_brings_all_names():
    assert python("from dlnotes import *; print(Perceptron.__name__, heaviside(2.0))") == (
        "Perceptron 1.0"
    )


def test_kernels_compile_where_no_cache_can_be_written(tmp_path):
    shutil.copytree(
        REPO / "dlnotes", tmp_path / "dlnotes", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "dlnotes" / "__pycache__").touch()  # a file where the folder would be
    code = (
        "import dlnotes, numpy as np\nx, y = np.eye(2), [0, 1]\n"
        "print(dlnotes.Perceptron(random_state=0).fit(x, y).score(x, y))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR",)}
    environment |= {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.strip() == "1.0", done.stderr


def test_names_are_unique_over_the_modules():
    assert len(set(NAMES)) == len(NAMES) and not set(NAMES) & set(MODULES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dlnotes' has no attribute 'perceptrn'"):
        dlnotes.perceptrn  # noqa: B018


def test_a_type_checker_is_told_the_same_names():
    tree = ast.parse((REPO / "dlnotes/__init__.py").read_text(encoding="utf-8"))
    told = [
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    assert sorted(told) == NAMES


def test_types_are_visible_to_mypy(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import dlnotes\nreveal_type(dlnotes.Perceptron().fit([[1.0]], [1]))\n"
        "reveal_type(dlnotes.margin)\ndlnotes.Perceptron(max_iter='many')\n"
    )
    # an editable installation is a hook that mypy does not run, so it is shown the folder
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", program.name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(REPO)},
    )
    assert 'Revealed type is "dlnotes.perceptron.Perceptron"' in done.stdout
    assert "-> float" in done.stdout.replace("builtins.", "")
    assert 'incompatible type "str"; expected "int"' in done.stdout
    assert "Found 1 error" in done.stdout  # and none in the package


def test_every_public_name_says_what_it_takes():
    for module in MODULES:
        for name in PUBLIC[module]:
            thing = getattr(dlnotes, name)
            assert thing.__doc__, name
            if not isinstance(thing, type):
                assert "return" in thing.__annotations__, name


def test_a_second_process_reads_the_kernels_from_the_cache(tmp_path):
    code = (
        "import numpy as np\nfrom dlnotes.perceptron import Perceptron, _shuffle, unrolled_epoch\n"
        "Perceptron(random_state=0).fit(np.eye(2), [0, 1])\n"
        "print([sum(s.values()) for k in (unrolled_epoch, _shuffle)"
        " for s in (k.stats.cache_hits, k.stats.cache_misses)])"
    )
    environment = dict(NUMBA_CACHE_DIR=str(tmp_path), NUMBA_DISABLE_JIT="0")
    assert python(code, **environment) == "[0, 1, 0, 1]"
    assert python(code, **environment) == "[1, 0, 1, 0]"


def test_the_wheel_holds_all_and_works_elsewhere(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(tmp_path),
            ".",
        ],
        check=True,
        cwd=REPO,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("dlnotes-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("dlnotes/")}
        archive.extractall(tmp_path / "site")
    there = {p for p in (REPO / "dlnotes").rglob("*") if p.suffix in (".py", ".typed")}
    assert inside == {p.relative_to(REPO).as_posix() for p in there}
    code = "from importlib import import_module\n"
    code += f"for module in {MODULES}: import_module(f'dlnotes.{{module}}')"
    code += "\nimport dlnotes; print(dlnotes.__file__, dlnotes.Perceptron())"
    assert python(code, PYTHONPATH=str(tmp_path / "site")).startswith(str(tmp_path / "site"))


def test_the_version_is_the_one_of_the_settings():
    settings = (REPO / "settings.ini").read_text(encoding="utf-8")
    assert f"\nversion = {dlnotes.__version__}\n" in settings


def test_the_examples_of_the_readme_print_what_it_says():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL)
    assert len(pairs) == 2
    for program, output in pairs:
        # another processor rounds otherwise, and may get a digit more or less right
        assert without_percent(python(program)) == without_percent(output.strip())


def without_percent(text):
    right = [int(n) for n in re.findall(r"(\d+)%", text)]
    assert all(n >= 90 for n in right)
    return re.sub(r"\d+%", "%", text)
