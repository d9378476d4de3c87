"""What a change of a file looks like, and why a file may not be overwritten: somebody's edits are in it."""
from .module import module_in, taken_apart

DIFF_LINES = 100                                           # are shown of one difference


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
