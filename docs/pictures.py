"""The README's pictures are outputs of notebook cells: `python docs/pictures.py` takes them from there.

`--check` (a test runs it) only says which are not what the notebook shows now, exit status 1.
"""
import base64
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {  # file in docs/img: notebook, id of the cell that draws it
    "ladder.png": ("01_matmul", "ff8493a9"),
    "collapse.png": ("06_cuda_cnn_hooks_init", "16dcdd63"),
    "color_dim.png": ("10_activations", "ten-lines-picture"),
    "no_collapse.png": ("06_cuda_cnn_hooks_init", "d6c4230f"),
}


def picture(notebook: str, cell_id: str) -> bytes:
    "The first picture that a cell of a committed notebook shows; raises `LookupError` when there is none."
    nb = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        for out in cell.get("outputs", []) if cell["id"] == cell_id else []:
            if png := out.get("data", {}).get("image/png"):
                return base64.b64decode("".join(png))
    raise LookupError(f"{notebook}: no cell {cell_id} with a picture")


def main() -> int:
    stale = 0
    for name, where in PICTURES.items():
        path, new = ROOT / "docs" / "img" / name, picture(*where)
        if not path.exists() or path.read_bytes() != new:
            stale += 1
            print(f"docs/img/{name}: {'differs from' if '--check' in sys.argv else 'taken from'} {where[0]}")
            if "--check" not in sys.argv:
                path.write_bytes(new)
    return int(stale > 0 and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
