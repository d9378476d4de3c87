"""Where the notebooks and the modules are, and which notebooks are meant."""
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import Misuse, find_settings, order, printable

from .notebook import Notebook, chapter

_exports = re.compile(rb'"#\s*\|?\s*export\s*(\\[nr]|")', re.I)


class Project(NamedTuple):
    "The folders of a project, and what its settings.ini says about the door (see door.py)."
    root: Path
    nbs: Path
    lib: Path
    door: Path | None
    outgrown: list[str]
    outgrown_by: str

    @classmethod
    def find(cls) -> "Project":
        "The project that the working folder is in; raises `Misuse`."
        cfg = find_settings()
        if cfg.root is None:
            raise Misuse("no settings.ini here or in any folder above: run this inside the project")
        keys = {"nbs_path": "nbs", "lib_path": "exp"} | ({"door_path": ""} if "door_path" in cfg.values else {})
        folders = {key: cfg.path(key, default) for key, default in keys.items()}
        for key, folder in folders.items():
            if cfg.root not in folder.resolve().parents:
                raise Misuse(f"{folder}: {key} in {cfg.root / 'settings.ini'} should be a folder inside {cfg.root}")
        if not folders["nbs_path"].is_dir():
            raise Misuse(f"{folders['nbs_path']}: no such folder (nbs_path in {cfg.root / 'settings.ini'})")
        return cls(cfg.root, folders["nbs_path"], folders["lib_path"], folders.get("door_path"),
                   cfg.values.get("outgrown", "").split(), cfg.values.get("outgrown_by", ""))

    def name(self, path: str | Path) -> str:
        "`path` relative to the project, with forward slashes."
        return Path(os.path.relpath(path, self.root)).as_posix()

    def target(self, nb: Notebook) -> Path:
        return self.lib / f"nb{nb.chapter}.py"

    def choose(self, paths: Sequence[str]) -> list[Notebook]:
        "The notebooks to export, in order of chapter; where a name won't do, with a fault or warning. Raises `Misuse`."
        everything = sorted(p for p in self.nbs.glob("*.ipynb") if not p.name.startswith("."))
        for path in map(Path, paths):
            if not path.exists() or path.suffix != ".ipynb" or not path.parent.samefile(self.nbs):
                raise Misuse(f"{path}: no such notebook: only those (.ipynb) that lie in {self.nbs} are exported")
        found = sorted({self.nbs / Path(path).name for path in paths}) if paths else everything
        notebooks = [Notebook(p, self.name(p), chapter(p)) for p in found]
        for nb in notebooks:
            twins = [printable(self.name(p)) for p in everything if chapter(p) == nb.chapter and p.name != nb.path.name]
            if not re.fullmatch(r"[\w .,()+-]+", nb.path.stem):
                nb.name = ascii(nb.name)
                nb.fault("a notebook's name should hold only letters, digits, blanks and _ - + . , ( )")
            elif not nb.chapter and paths:
                nb.fault("a notebook's name should begin with its chapter number, as in 05a_foundations.ipynb")
            elif not nb.chapter and nb.path.is_file() and _exports.search(nb.path.read_bytes()):
                nb.warn("not exported: its name begins with no chapter number, as in 05a_foundations.ipynb")
            elif nb.chapter and twins:
                nb.fault(f"two notebooks for one module, {self.name(self.target(nb))}: also {', '.join(twins)}")
        return sorted(notebooks, key=lambda nb: order(nb.chapter))
