"""Which notebooks are meant, in which order, and what this machine can run."""
import glob
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from common import Misuse, Settings, order, printable


def in_folder(folder: Path) -> list[Path]:
    "The notebooks in and below `folder`, but for hidden ones and those in folders such as .ipynb_checkpoints and _out."
    return [f for f in folder.rglob("*.ipynb") if not f.is_dir() and f.name[0] != "."
            and not any(part[0] in "._" for part in f.relative_to(folder).parts[:-1])]


def find_notebooks(paths: list[str], settings: Settings, importers: bool = False) -> list[Path]:
    "The files that `paths` mean, each once, in number order; raises `Misuse` for one that means nothing."
    nbs = settings.path("nbs_path", "nbs")
    found = []
    for path in paths or [str(nbs)]:
        p, named = Path(path), nbs / f"{path.removesuffix('.ipynb')}.ipynb"
        if p.is_dir():
            new = in_folder(p)
        elif p.exists() or named.is_file():
            new = [p if p.exists() else named]
        else:
            new = [Path(f) for f in glob.glob(path, recursive=True) if f.endswith(".ipynb")]
        if not new:
            raise Misuse(f"{path}: no {'notebooks there' if p.is_dir() or '*' in path else 'such file or folder'}")
        found += new
    if importers:
        found += importing(found, in_folder(nbs))
    return sorted({f.parent.resolve() / f.name for f in found}, key=lambda f: (order(f.stem), str(f)))


def importing(chosen: list[Path], every: list[Path]) -> set[Path]:
    "Those of `every` notebook that import a module of one that is `chosen`, or of one found so."
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in every if path.is_file()}
    found, new = set(), set(chosen)
    while new:
        numbers = "|".join({re.escape(path.stem.partition("_")[0].lower()) for path in new})
        imports = re.compile(rf"(from|import) exp\W([^\n]*\b)?nb({numbers})\b")
        new = {path for path in texts.keys() - found if imports.search(texts[path])}
        found |= new
    return found


def label(path: Path) -> str:
    "A path as it is shown: relative to the working folder where it lies below it."
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return printable(str(path))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu(device: str) -> bool:
    """Whether torch can use a CUDA device, which to it is AMD's ROCm, too: asked in a process of its own.

    If nobody asks for one, only where there is a driver, as it takes seconds. Else torch's word counts, so that what
    stands in for a device will do.
    """
    device = os.environ.get("GROUNDUP_DEVICE", device) if device == "auto" else device
    drivers = "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg"
    if not device.startswith("cuda") and (device != "auto" or not (any(map(os.path.exists, drivers))
                                                                   or shutil.which("nvidia-smi"))):
        return False
    code = "import torch; print(torch.cuda.is_available())"
    try:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).stdout.strip() == b"True"
    except (OSError, subprocess.SubprocessError):
        return False
