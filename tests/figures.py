"""How hard the torture tests try, and where they keep what they counted.

`make test` runs their quick form; `make torture` sets GROUNDUP_TORTURE=1, runs the long one, and prints the figures:
    python tests/figures.py           prints those of the last run
    python tests/figures.py --doc     also puts them into docs/reliability.md
"""
import datetime
import json
import os
import platform
import re
import sys
from pathlib import Path

LONG = os.environ.get("GROUNDUP_TORTURE") == "1"
ROOT = Path(__file__).resolve().parents[1]
FILE, DOC = ROOT / "_out" / "torture.jsonl", ROOT / "docs" / "reliability.md"
BLOCK = re.compile(r"(?<=```text\n).*?(?=```\n)", re.S)


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


def machine() -> str:
    "Where this is, in words."
    names = re.findall(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M) \
        if Path("/proc/cpuinfo").exists() else []
    return f"{platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores of " \
           f"{(names or [platform.processor() or platform.machine()])[0]}"


def report() -> str:
    "The figures of the last run, a line for each test."
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    when = datetime.datetime.fromtimestamp(FILE.stat().st_mtime)
    lines = [f"{when:%Y-%m-%d}, {machine()}"]
    for row in rows:
        lines.append(f"{row.pop('what')}: " + ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in row.items()))
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    if argv not in ([], ["--doc"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not FILE.exists():
        print("no figures: run `make torture`", file=sys.stderr)
        return 1
    text = report()
    print(text, end="")
    if argv:
        DOC.write_text(BLOCK.sub(lambda m: text, DOC.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
