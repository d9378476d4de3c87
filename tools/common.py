"""What exporter and runner share: settings, cell marks, reading a notebook, writing files whole or not at all."""
import glob
import json
import os
import re
import time
from configparser import ConfigParser, Error
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

MARK_LINE = r"^[^\S\n]*#[^\S\n]*\|?[^\S\n]*(export|slow|cuda)[^\S\n]*$"
BLANK_LINES = r"(?:[^\S\n]*\n)*"
MARK = re.compile(BLANK_LINES + MARK_LINE, re.I | re.M)     # matches a cell that is marked, up to the end of that line


class Misuse(Exception):
    "The command was called wrongly, or the project is not set up: shown as one line, exit status 2."


class BadFile(Exception):
    "Not a notebook that can be used: what is wrong and what to do."


class Settings(NamedTuple):
    "What settings.ini says; `root` is the folder it lies in, `None` when none was found (then all is default)."
    root: Path | None = None
    values: dict = {}

    def path(self, key: str, default: str) -> Path:
        "The folder named by `key`, relative to settings.ini (or to the working folder when there is none)."
        return (self.root or Path.cwd()) / self.values.get(key, default)

    def number(self, key: str, default: float) -> float:
        "The number named by `key`; raises `Misuse` when it is not one."
        val = self.values.get(key, default)
        try:
            return float(val)
        except ValueError:
            raise Misuse(f"{(self.root or Path()) / 'settings.ini'}: {key} should be a number, not {val!r}") from None


def find_settings(start: str | os.PathLike = ".") -> Settings:
    "The settings.ini in `start` or the nearest folder above it."
    start = Path(start).resolve()
    for folder in [start, *start.parents]:
        file = folder / "settings.ini"
        if file.is_file():
            cfg = ConfigParser(interpolation=None)
            try:
                cfg.read(file, encoding="utf-8")
            except (Error, UnicodeDecodeError) as e:
                raise Misuse(f"{file}: not a readable settings file: {str(e).splitlines()[0]}") from None
            return Settings(folder, dict(cfg["DEFAULT"]))
    return Settings()


def read_file(path: Path) -> bytes:
    "The bytes of a notebook's file; raises `BadFile`."
    if path.exists() and not path.is_file():               # a pipe would never end
        raise BadFile("cannot be read: not a file")
    try:
        return path.read_bytes()
    except OSError as e:
        raise BadFile(f"cannot be read: {e.strerror or e}") from None


def parse(raw: bytes) -> dict:
    "The notebook in a file's bytes: format 4, with cells of known types whose sources are text. Raises `BadFile`."
    try:
        text = raw.decode("utf-8-sig")
        doc: Any = json.loads(text)
    except UnicodeDecodeError as e:
        raise BadFile(f"not a notebook: byte {e.start} is not UTF-8 text") from None
    except (ValueError, RecursionError) as e:
        if not text.strip():
            raise BadFile("the file is empty: restore it (git checkout) or delete it") from None
        conflict = re.search(r"^<{7} ", text, re.M)
        raise BadFile("merge-conflict markers: run nbdev-fix, or choose a side in an editor" if conflict else
                      f"not a notebook: broken JSON: {e}") from None
    if isinstance(doc, dict) and {"cells", "nbformat"} & doc.keys() and doc.get("nbformat") != 4:
        raise BadFile(f"notebook format {json.dumps(doc.get('nbformat'))[:20]} is not known here, only 4: "
                      "`jupyter nbconvert --to notebook --nbformat 4 --inplace` renews an older one")
    if not isinstance(doc, dict) or not isinstance(doc.get("cells"), list):
        raise BadFile("not a notebook: JSON without a list of cells")
    for n, c in enumerate(doc["cells"], 1):
        if not isinstance(c, dict) or c.get("cell_type") not in ("code", "markdown", "raw"):
            raise BadFile(f"cell {n} is not a code, markdown or raw cell")
        if not isinstance(src := c.get("source"), (str, list)) or not all(isinstance(s, str) for s in src):
            raise BadFile(f"cell {n}: its source is not text")
    return doc


def printable(name: str) -> str:
    "A file's name as it may be shown: with line ends, terminal codes and the like escaped."
    return name if name.isprintable() else ascii(name)


def plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def short(name: str) -> str:
    "A file's name, cut so that there is room for the rest of a temporary one: it may be as long as names can be."
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


def order(name: str) -> list[tuple[int, str]]:
    "Sorts chapters and notebooks: 2 before 10, 05 before 05a before 05b before 06."
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", name) if t]


class Change(NamedTuple):
    "A file to write; `old` is what it held when it was read, `None` where there was none."
    path: Path
    old: bytes | None
    new: bytes


def contents(path: Path) -> bytes | None:
    "The bytes of a file, `None` when there is none."
    return path.read_bytes() if path.is_file() else None


def write_through(path: Path, data: bytes) -> None:
    "Writes a file, and waits until the disk has it."
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def write_all(changes: list[Change]) -> None:
    """Makes all changes, or none where the disk is full or a file has changed since it was read: raises `OSError`.

    All files are written beside their targets and flushed first, then renamed in order: each is whole at every moment.
    """
    staged, done, c = {}, 0, None
    try:
        for c in changes:
            c.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(c.path)
            staged[c.path] = c.path.with_name(f".{short(c.path.name)}.{os.getpid()}-{os.urandom(4).hex()}.new")
            write_through(staged[c.path], c.new)
        for c in changes:
            if contents(c.path) not in (c.old, c.new):
                raise OSError(0, "it changed while this ran")
            if c.old is not None:
                os.chmod(staged[c.path], c.path.stat().st_mode & 0o777)
        for c in changes:
            os.replace(staged[c.path], c.path)
            done += 1
    except OSError as e:
        so_far = f"{done} of {len(changes)} files are new, each whole" if done else "nothing was changed"
        raise OSError(e.errno, f"not written: {e.strerror}; {so_far}", c and str(c.path)) from None
    finally:
        for path in staged.values():
            with suppress(OSError):                        # or Windows would tell of this instead of the cause
                path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    "Removes what a tool that was killed while it wrote `path`, ten minutes ago or more, left beside it."
    for f in path.parent.glob(f".{glob.escape(short(path.name))}.*.new"):
        with suppress(OSError):
            if f.stat().st_mtime < time.time() - 600:
                f.unlink()
