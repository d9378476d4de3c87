"""git's merge driver for generated files (`hooks.py` installs it): `merge_module.py BASE OURS THEIRS PATH`.

Modules carry digests and `__all__`, which differ on two branches that change different cells of one chapter. They are
left out of git's own merge and made anew. Where both sides changed one cell, ours stays, and the cure is named.
"""
import re
import subprocess
import sys
import tempfile
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


def merge(base: str, ours: str, theirs: str) -> str | None:
    "The merged file, or `None`. In the door, whose lines are names, both sides' lines are taken."
    union = ["--union"] if "\n_module_of = {" in ours or "\n__version__: str" in ours else []
    with tempfile.TemporaryDirectory() as tmp:
        files = [Path(tmp, name) for name in ("ours", "base", "theirs")]
        for file, text in zip(files, (ours, base, theirs), strict=True):
            file.write_bytes(neutral(text).encode())
        done = subprocess.run(["git", "merge-file", "-p", *union, *map(str, files)], capture_output=True)
    return whole(done.stdout.decode()) if done.returncode == 0 else None


def main(base: str, ours: str, theirs: str, path: str) -> int:
    new = merge(*(Path(p).read_text(encoding="utf-8").replace("\r\n", "\n") for p in (base, ours, theirs)))
    if new is None:
        print(f"{path} is generated: settle its notebook first, then `make export` writes it", file=sys.stderr)
        return 1
    Path(ours).write_bytes(new.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
