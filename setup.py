"""Hands settings.ini to setuptools: the package's metadata is written down once, there."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser()
cfg.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
s = cfg["DEFAULT"]
packages = [s["lib_path"], s["door_path"]]
EXTRAS = ("data", "tools", "dev", "book", "lab", "scale")
data, tools, dev, book, lab, scale = (s[f"{extra}_requirements"].split() for extra in EXTRAS)
dev += data + tools + book + scale

setup(
    name=s["name"], version=s["version"], description=s["description"], license_expression=s["license"],
    license_files=["LICENSE"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    python_requires=f">={s['min_python']}", packages=packages, py_modules=[],
    package_data={package: ["*.pyi", "py.typed"] for package in packages},
    install_requires=s["requirements"].split(), entry_points={"console_scripts": s["console_scripts"].split()},
    extras_require={"data": data, "tools": data + tools, "scale": scale, "dev": dev, "lab": dev + lab},
)
