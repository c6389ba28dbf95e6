"""Package metadata: everything is read from settings.ini, which nbdev reads too."""

from configparser import ConfigParser
from pathlib import Path
from shutil import rmtree

from setuptools import find_packages, setup

here = Path(__file__).parent
rmtree(here / "build" / "lib", ignore_errors=True)  # may hold modules that have moved since
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("plot", "data")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    license={"apache2": "Apache-2.0"}[cfg["license"]],  # nbdev's name: the SPDX identifier
    license_files=["LICENSE"],
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        **extras,
        "dev": [*sum(extras.values(), []), *cfg["dev_requirements"].split()],
    },
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    package_data={cfg["lib_name"]: ["py.typed"]},
    entry_points={"nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    zip_safe=False,
)
