"""What is written of an executed notebook: its own file, clean, whole and never over somebody else's work; a page."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Change, contents, write_all

from runner.notebook import Notebook
from runner.text import one_line, plain

WIDGET = "application/vnd.jupyter.widget-view+json"


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
    except (ImportError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
        # in parts that running does not look at
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


def settle(line: str) -> str:
    "One line as a terminal would show it in the end: carriage returns and backspaces obeyed."
    line = line[:-1] if line.endswith("\r") else line
    if not re.search(r"[\r\b]|\x1b\[\d*[A-K]", line):
        return line
    line = re.sub(r"\x1b\[\d*[A-JK]", "", line)
    if "\x1b" in line:                                     # coloured: the last state is the one to see
        return re.sub(r"[^\b]\b", "", next((p for p in reversed(line.split("\r")) if p), ""))
    shown, at = [], 0
    for ch in line:
        if ch == "\r":
            at = 0
        elif ch == "\b":
            at = max(0, at - 1)
        else:
            shown[at:at + 1] = ch
            at += 1
    return "".join(shown).rstrip()


def tidy_outputs(outputs: list) -> list[dict]:
    """Outputs as plain dicts, fit for a file: streams between two rich outputs merged (stdout first: how the two
    alternate is chance), progress bars in their last state only, no widget views, which need a state to be alive."""
    tidy: list[dict] = []
    group: dict[str, str] = {}

    def close():
        for name in sorted(group, reverse=True):
            text = "\n".join(map(settle, group[name].split("\n")))
            if text.strip("\n") or "\r" not in group[name]:
                tidy.append({"output_type": "stream", "name": name, "text": text})
        group.clear()
    # halves of characters cannot be saved
    for o in json.loads(json.dumps(outputs, ensure_ascii=False).encode("utf-8", "replace")):
        if o["output_type"] == "stream":
            group[o["name"]] = group.get(o["name"], "") + o["text"]
            continue
        close()
        if "data" in o:
            o["data"].pop(WIDGET, None)
        tidy.append(o)
    close()
    return tidy


def shown_text(outputs: list[dict]) -> str:
    "What the outputs say, as text."
    texts = [o["text"] if o["output_type"] == "stream" else o.get("data", {}).get("text/plain", "") for o in outputs]
    return plain("\n".join(("".join(t) if isinstance(t, list) else str(t)).rstrip("\n") for t in texts if t))
