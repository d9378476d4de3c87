"""How hard the torture tests try, and where they keep what they counted.

`make test` runs their quick form; `make torture` sets GROUNDUP_TORTURE=1, runs the long one, and prints the figures:
    python tests/torture/figures.py
"""
import json
import os
import platform
import sys
from pathlib import Path

LONG = os.environ.get("GROUNDUP_TORTURE") == "1"
FILE = Path(__file__).resolve().parents[2] / "_out" / "torture.jsonl"


def times(quick: int, long: int) -> int:
    "How often: `quick` in `make test`, `long` in `make torture`."
    return long if LONG else quick


def figure(what: str, **numbers) -> None:
    "Keeps the figures of a test: `figure('kills of the exporter', kills=80, lost=0)`. Only in the long form."
    if not LONG:
        return
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a", encoding="utf-8") as f:
        f.write(json.dumps({"what": what} | numbers) + "\n")


def main() -> int:
    if not FILE.exists():
        print("no figures: run `make torture`", file=sys.stderr)
        return 1
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    print(f"{platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    for row in rows:
        print(f"{row.pop('what'):50} " + ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
