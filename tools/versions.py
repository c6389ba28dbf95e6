"""Whether what settings.ini admits works: the lowest versions, and those beyond upper bounds.

    python -m tools.versions lowest [STEP ...]   # steps of tools.check, with the lowest versions
    python -m tools.versions pins                # each upper bound lifted: is it still needed?

Each makes environments of its own in `.cache/versions`, with the Python that runs it, and needs
nothing installed. `pins` fails where a bound has come to its end: then it goes from settings.ini.
"""

import argparse
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from tools import REPO

HOME = REPO / ".cache" / "versions"
# what a newer nbdev, or a newer pandoc, would break
BROKEN = ["tests/test_project.py", "tests/test_render.py", "-k", "not stored_outputs"]


def settings() -> dict[str, str]:
    "settings.ini."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(REPO / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def requirements() -> list[str]:
    "All that settings.ini names, for development too."
    groups = settings()
    names = ("requirements", "plot_requirements", "data_requirements", "dev_requirements")
    return [requirement for name in names for requirement in groups[name].split()]


def lowest(requirement: str) -> str:
    "`name>=1.2,<3` -> `name==1.2`."
    found = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<[\d.]+)?", requirement)
    if not found:
        raise ValueError(f"settings.ini: {requirement} has no lower bound")
    return f"{found[1]}=={found[2]}"


def bounded(requirement: str) -> bool:
    "Whether a requirement has an upper bound."
    return "<" in requirement


def beyond(requirement: str) -> str:
    "`name>=1.2,<3` -> `name>=3`."
    return re.sub(r"[<>=].*<", ">=", requirement)


def unbounded(requirement: str) -> str:
    "`name>=1.2,<3` -> `name>=1.2`."
    return requirement.partition(",<")[0]


def environment(name: str, wanted: list[str]) -> Path:
    "The Python of a new environment that has those, and this package."
    folder = HOME / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for what in (wanted, ["--no-deps", "--editable", REPO]):
        subprocess.run([*pip, *what], check=True, capture_output=True, text=True)
    return python


def within(python: Path) -> dict[str, str]:
    "The environment's variables: its programs first on the path, Numba's caches its own."
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    folder = str(python.parent.parent / "numba")
    caches = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"), folder)
    return {**os.environ, **caches, "PATH": path, "PYTHONPATH": str(REPO)}


def last_lines(text: str, count: int = 3) -> str:
    return " | ".join([line for line in text.strip().splitlines() if line][-count:])


def tried(name: str, wanted: list[str]) -> str:
    "What goes wrong with those versions; empty if nothing does."
    try:
        python = environment(name, wanted)
    except subprocess.CalledProcessError as error:
        return f"cannot be installed: {last_lines(error.stderr or '')}"
    done = subprocess.run(
        [python, "-m", "pytest", *BROKEN],
        cwd=REPO,
        env=within(python),
        capture_output=True,
        text=True,
        check=False,
    )
    return f"tests fail: {last_lines(done.stdout + done.stderr)}" if done.returncode else ""


def pins() -> int:
    "Each upper bound lifted alone, and all together."
    wanted = requirements()
    held = [requirement for requirement in wanted if bounded(requirement)]
    ended = 0
    lines = []
    for pin in held:
        others = [r for r in wanted if r != pin]
        wrong = tried(re.split("[<>=]", pin)[0], [*others, beyond(pin)])
        ended += not wrong
        lines.append(f"{pin}: {'still needed: ' + wrong if wrong else 'HAS COME TO ITS END'}")
        print(lines[-1], flush=True)
    wrong = tried("all", [unbounded(r) for r in wanted])
    ended += not wrong
    lines.append(f"all together: {'still needed: ' + wrong if wrong else 'HAVE COME TO THEIR END'}")
    print(lines[-1], flush=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        Path(summary).write_text("".join(f"- {line}\n" for line in lines), encoding="utf-8")
    return int(ended > 0)


def with_lowest(steps: list[str]) -> int:
    "Steps of tools.check with the lowest versions, on the lowest Python."
    least = settings()["min_python"]
    if f"{sys.version_info[0]}.{sys.version_info[1]}" != least:
        sys.exit(f"the lowest versions need Python {least}, and this is {sys.version.split()[0]}")
    wanted = [lowest(requirement) for requirement in requirements()]
    print("installing", *wanted, flush=True)
    try:
        python = environment("lowest", wanted)
    except subprocess.CalledProcessError as error:
        sys.exit(f"cannot be installed:\n{error.stderr}")
    command = [python, "-m", "tools.check", *steps]
    return subprocess.run(command, cwd=REPO, env=within(python), check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.versions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("what", choices=["lowest", "pins"])
    parser.add_argument("steps", nargs="*", metavar="STEP", help="of tools.check, for `lowest`")
    options = parser.parse_args()
    return with_lowest(options.steps) if options.what == "lowest" else pins()


if __name__ == "__main__":
    sys.exit(main())
