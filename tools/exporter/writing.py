"""Files are written all or not at all, each whole at every moment, and never over somebody's edits."""
import os
from pathlib import Path
from typing import NamedTuple

from common import remove_leftovers, short

from .module import module_in, taken_apart

DIFF_LINES = 100                                           # are shown of one difference


class Change(NamedTuple):
    "A file to write or, where `new` is `None`, to remove; `old` is what it held when it was read."
    path: Path
    old: bytes | None
    new: bytes | None


def contents(path: Path) -> bytes | None:
    "The bytes of a file, `None` when there is none."
    return path.read_bytes() if path.is_file() else None


def diff(old: str | bytes | None, new: str | bytes | None, old_name: str, new_name: str) -> str:
    "A unified difference of two texts, its first `DIFF_LINES` lines."
    from difflib import unified_diff
    before, after = (t.decode(errors="replace") if isinstance(t, bytes) else t or "" for t in (old, new))
    lines = list(unified_diff(before.split("\n"), after.split("\n"), old_name, new_name, lineterm=""))
    more = [f"… {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else []
    return "\n".join(lines[:DIFF_LINES] + more)


def refusal(name: str, old: bytes | None, new: str, update: bool) -> str | None:
    "Why the file `name`, which holds `old`, may not be overwritten with `new`, or `None`."
    mod = module_in(old)
    if old is None or mod and not mod.edited():
        return None
    if update and mod and (not mod.frame_edited() or (made := taken_apart(new)) and mod.frame == made.frame):
        return None
    if not mod:
        cause = "was not written by this tool: --update cannot read it, --force overwrites it"
    elif update or not mod.blocks:
        cause = "was edited outside its blocks, where no cell is: undo that, or --force overwrites it"
    else:
        cause = "was edited by hand: --update brings the edits into the notebook, --force overwrites them"
    return f"{name} {cause}\n{diff(old, new, name, f'{name} as exported')}"


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
            if c.new is not None:
                c.path.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(c.path)
                staged[c.path] = c.path.with_name(f".{short(c.path.name)}.{os.getpid()}.new")
                write_through(staged[c.path], c.new)
        for c in changes:
            if contents(c.path) not in (c.old, c.new):
                raise OSError(0, "it changed while this ran")
            if c.path in staged and c.old is not None:
                os.chmod(staged[c.path], c.path.stat().st_mode & 0o777)
        for c in changes:
            os.replace(staged[c.path], c.path) if c.path in staged else c.path.unlink(missing_ok=True)
            done += 1
    except OSError as e:
        so_far = f"{done} of {len(changes)} files are new, each whole" if done else "nothing was changed"
        raise OSError(e.errno, f"not written: {e.strerror}; {so_far}", c and str(c.path)) from None
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)
