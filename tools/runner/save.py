"""Saving what a notebook put out: clean, whole or not at all, and never over what somebody else has saved."""
import json
from pathlib import Path

from common import atomic_write, remove_leftovers

from runner.notebook import Notebook
from runner.text import one_line


class NotSaved(Exception):
    "Why the outputs were not written."


def save(nb: Notebook) -> bool:
    "Write the new outputs, clean, into the notebook's file; returns whether it changed. Raises `NotSaved`."
    try:
        new = clean_bytes(nb.with_outputs(counts=False), nb.path.parent)
        check_unchanged(nb)
        if new != nb.raw:
            if not nb.path.stat().st_mode & 0o222:
                raise NotSaved("not saved: the file is read-only")
            remove_leftovers(nb.path)
            atomic_write(nb.path, new, lambda: check_unchanged(nb))
    except OSError as e:
        raise NotSaved(f"not saved, the file is as it was: {e.strerror or e}") from None
    except UnicodeEncodeError:
        raise NotSaved("not saved: a cell holds half a character (a lone surrogate)") from None
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as e:  # parts that running does not look at
        raise NotSaved(one_line(f"not saved: nbdev could not clean it: {type(e).__name__}: {e}")) from None
    return new != nb.raw


def check_unchanged(nb: Notebook) -> None:
    "Raises `NotSaved` if the file is no longer the one that was read: somebody saved it meanwhile."
    try:
        now = nb.path.read_bytes()
    except FileNotFoundError:
        raise NotSaved("not saved: the file was removed or renamed while the notebook ran") from None
    if now != nb.raw:
        raise NotSaved("not saved: the file changed while the notebook ran, and your changes matter more")


def clean_bytes(doc: dict, folder: Path) -> bytes:
    """The file nbdev's clean would leave for `doc`, without widget state. Tags are kept wherever the notebook is.

    It is written here, as nbdev's own writer drops what ends in `_`, such as the key `a_` of a JSON output.
    """
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbformat import from_dict
    from nbformat.v4.rwbase import split_lines
    cfg = get_config(path=folder)
    doc = json.loads(json.dumps(doc))
    doc.get("metadata", {}).pop("widgets", None)
    keys = {k: cfg.get(k) or [] for k in ("allowed_metadata_keys", "allowed_cell_metadata_keys",
                                          "allowed_out_metadata_keys")}
    keys["allowed_cell_metadata_keys"] = ["tags", *keys["allowed_cell_metadata_keys"]]
    clean_nb(doc, clear_all=False, clean_ids=cfg.clean_ids, **keys)
    return canonical(split_lines(from_dict(doc)))


def canonical(doc: dict) -> bytes:
    "A notebook's file as Jupyter and git like it best."
    return (json.dumps(doc, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
