"""What is written of an executed notebook: its own file, clean, whole and never over somebody else's work; a page."""
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Change, contents, write_all

from runner.notebook import Notebook
from runner.text import one_line


class NotSaved(Exception):
    "Why the outputs were not written."


def save(nb: Notebook) -> bool:
    "Write the new outputs, clean, into the notebook's file; returns whether it changed. Raises `NotSaved`."
    try:
        new, path = clean_bytes(nb.with_outputs(counts=False), nb.path.parent), Path(os.path.realpath(nb.path))
        if new != nb.raw and path.exists() and not path.stat().st_mode & 0o222:
            raise NotSaved("not saved: the file is read-only")
        write_all([Change(path, nb.raw, new)] if new != nb.raw or contents(path) != new else [])
    except OSError as e:
        raise NotSaved(f"not saved: {str(e.strerror or e).removeprefix('not written: ')}") from None
    except UnicodeEncodeError:
        raise NotSaved("not saved: a cell holds half a character (a lone surrogate)") from None
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as e:  # parts that running does not look at
        raise NotSaved(one_line(f"not saved: nbdev could not clean it: {type(e).__name__}: {e}")) from None
    return new != nb.raw


def clean(doc: dict, folder: str | Path) -> None:
    "What nbdev's clean makes of a notebook, and without widget state. Tags are kept wherever the notebook is."
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    cfg: Any = get_config(path=folder)
    doc.get("metadata", {}).pop("widgets", None)
    kinds = "metadata", "cell_metadata", "out_metadata"
    keys: dict[str, Any] = {f"allowed_{k}_keys": cfg.get(f"allowed_{k}_keys") or [] for k in kinds}
    keys["allowed_cell_metadata_keys"] = ["tags", *keys["allowed_cell_metadata_keys"]]
    clean_nb(doc, clear_all=False, clean_ids=cfg.clean_ids, **keys)


def clean_bytes(doc: dict, folder: Path) -> bytes:
    "The file of a clean notebook. nbdev's own writer drops what ends in `_`, such as the key `a_` of a JSON output."
    from nbformat import from_dict
    from nbformat.v4.rwbase import split_lines
    doc = json.loads(json.dumps(doc))
    clean(doc, folder)
    return (json.dumps(split_lines(from_dict(doc)), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def make_page(nb: Notebook) -> tuple[bytes, str]:
    "The notebook as HTML, or why not. nbconvert is large and slow: it gets a process; call this in a thread."
    doc = nb.with_outputs(counts=True)
    doc["metadata"] = {k: v for k, v in doc.get("metadata", {}).items() if k != "widgets"} | {"title": nb.path.stem}
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--stdin", "--stdout", "--to=html", "--template=lab", "--log-level=ERROR",
         "--HTMLExporter.embed_images=True", "--HTMLExporter.require_js_url=", "--HTMLExporter.jquery_url="],
        cwd=nb.path.parent, env=os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}, capture_output=True,
        input=json.dumps(doc, ensure_ascii=False).encode("utf-8", "replace"))
    if done.returncode:
        return b"", one_line("\n".join(done.stderr.decode("utf-8", "replace").split("\n")[::-1]) or "nbconvert failed")
    return done.stdout.replace(b'<script src=""></script>', b""), ""
