"""What exporter and runner share: the project's settings, cell marks, and writing a file whole or not at all."""
import glob
import os
import re
import time
from collections.abc import Callable
from configparser import ConfigParser, Error
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARKS = ("export", "slow", "cuda")
_mark_re = re.compile(rf"#\s*\|?\s*({'|'.join(MARKS)})\s*$", re.I)


class Misuse(Exception):
    "The command was called wrongly, or the project is not set up: shown as one line, exit status 2."


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


def cell_mark(source: str) -> str | None:
    "The mark (`export`, `slow`, `cuda`) on the first non-blank line of a cell's source, or `None`."
    for line in source.splitlines():
        if line.strip():
            m = _mark_re.match(line.strip())
            return m[1].lower() if m else None
    return None


def printable(name: str) -> str:
    "A file's name as it may be shown: with line ends, terminal codes and the like escaped."
    return name if name.isprintable() else ascii(name)


def short(name: str) -> str:
    "A file's name, cut so that there is room for the rest of a temporary one: it may be as long as names can be."
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


def remove_leftovers(path: Path) -> None:
    "Removes what a tool that was killed while it wrote `path`, ten minutes ago or more, left beside it."
    for f in path.parent.glob(f".*{glob.escape(short(path.name))}.*"):
        with suppress(OSError):
            if f.suffix in (".new", ".tmp") and f.stat().st_mtime < time.time() - 600:
                f.unlink()


def atomic_write(path: str | os.PathLike, data: bytes, last_look: Callable[[], None] | None = None) -> None:
    """Write `data` to `path` so that at every moment the file is the old one or the new one, whole.

    The bytes go to a temporary file in the same folder, are flushed to disk, and the file is renamed into place.
    Just before that `last_look` is called, which may raise. On any error the old file stays and the temporary one is
    removed. Keeps the file's permissions. Raises `OSError`.
    """
    import tempfile  # here, as the exporter does without, and it takes a while to load

    path = Path(os.path.realpath(path))                    # a symlink keeps pointing where it did
    fd, tmp = tempfile.mkstemp(prefix=f".{short(path.name)}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        try:
            mode = path.stat().st_mode & 0o777
        except FileNotFoundError:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(tmp, mode)
        if last_look:
            last_look()
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise
