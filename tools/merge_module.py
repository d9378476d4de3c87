"""git's merge driver for generated files (`hooks.py` installs it): `merge_module.py BASE OURS THEIRS PATH`.

Modules carry digests and `__all__`, which differ on two branches that change different cells of one chapter. They are
left out of git's own merge and made anew. Where both sides changed one cell, ours stays, and the cure is named.
"""
import re
import subprocess
import sys
from pathlib import Path

from exporter import code
from exporter.module import ORIGIN, render, sealed, taken_apart
from exporter.notebook import Cell, Notebook, chapter


def neutral(text: str) -> str:
    "A generated file without what follows from the rest of it."
    text = re.sub(r"(?<=Digest )[0-9a-f]{8}-[0-9a-f]{8}(?=\.$)", "0" * 8 + "-" + "0" * 8, text, count=1, flags=re.M)
    text = re.sub(r"^(# %% .+ #[\w-]+) \([0-9a-f]{8}\)$", rf"\1 ({'0' * 8})", text, flags=re.M)
    return re.sub(r'^__all__ = \["[^\]]*\]$', "__all__ = []", text, count=1, flags=re.M)


def whole(text: str) -> str | None:
    "A merged, neutral file with all that follows from it; `None` where it is none of ours or its code has faults."
    mod, origin = taken_apart(text), ORIGIN.search(text)
    if not mod or not origin:
        return None
    if not mod.blocks:                                     # the door
        return sealed(re.sub(r"(?<=Digest )[0-9-]+\.$", ".", text, count=1, flags=re.M))
    nb = Notebook(Path(origin[1]), origin[1], chapter(Path(origin[1])))
    nb.cells = [Cell(n, id, "", body) for n, (id, _, body) in enumerate(mod.blocks, 1)]
    code.check(nb, "exp")
    return None if nb.faults else render(nb)


def main(base: str, ours: str, theirs: str, path: str) -> int:
    "Merges into `ours`. In the door, whose lines are names, both sides' lines are taken."
    old = Path(ours).read_bytes()
    union = ["--union"] if b"\n_module_of = {" in old or b"\n__version__: str" in old else []
    for file in base, ours, theirs:                        # they are git's copies
        Path(file).write_bytes(neutral(Path(file).read_text(encoding="utf-8")).encode())
    done = subprocess.run(["git", "merge-file", "-p", *union, ours, base, theirs], capture_output=True)
    new = whole(done.stdout.decode()) if done.returncode == 0 else None
    Path(ours).write_bytes(new.encode() if new else old)
    if not new:
        print(f"{path} is generated: settle its notebook first, then `make export` writes it", file=sys.stderr)
    return int(not new)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
