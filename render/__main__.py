"""`python -m render [--output DIR]`, at the root of the project: builds the book without Quarto."""

import argparse
import sys
import tempfile
from pathlib import Path

import yaml

from .book import Book
from .config import read_config


def main():
    parser = argparse.ArgumentParser(prog="python -m render", description=__doc__)
    parser.add_argument("--output", type=Path, help="where to, instead of what _quarto.yml says")
    output = parser.parse_args().output
    try:
        config = read_config(Path.cwd())
    except (ValueError, FileNotFoundError, yaml.YAMLError) as error:
        sys.exit(f"_quarto.yml: {error}")
    output = (output or Path(config.get("output-dir", "_book"))).resolve()
    if output.exists() and any(output.iterdir()) and not (output / "index.html").exists():
        sys.exit(f"{output} holds something that is not a book: it is not replaced")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".book-") as folder:
        new = Path(folder) / "new"
        if problems := Book(Path.cwd(), config, new).build():
            sys.exit("\n".join([*problems, "The book is not made: see above."]))
        if output.exists():
            output.rename(Path(folder) / "old")
        new.rename(output)
    print((output / "index.html").as_uri())


if __name__ == "__main__":
    main()
