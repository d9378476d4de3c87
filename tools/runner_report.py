"""What the runner says: lines, live progress, failure reports, pages, JUnit files, the slowest cells."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from runner_notebook import Fault, Notebook, one_line, plain, shown_text

KERNEL = re.escape(str(Path(__file__).with_name("runner_kernel.py")))
OWN_FRAMES = re.compile(rf'^( *)File "{KERNEL}", line .*\n?(?:\1 +(?!File ").*\n?)*', re.M)  # and the code below them
COLORS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


def clock(seconds: float) -> str:
    "Seconds as people say them."
    if seconds < 60:
        return f"{seconds:.1f} s"
    m, s = divmod(round(seconds), 60)
    return f"{m}:{s:02d} min" if m < 60 else f"{m // 60}:{m % 60:02d} h"


def visible(text: str) -> str:
    "Control characters as their escapes: a report must not ring, clear the screen or go back in its line."
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]", lambda m: ascii(m[0])[1:-1], text)


def plural(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


class Screen:
    "Where everything is printed: lines that stay, and on a terminal one line of progress that is redrawn."

    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.live = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self.colored = self.live and not os.environ.get("NO_COLOR")
        self.drawn, self.open_line = False, False

    def paint(self, text: str, color: str) -> str:
        return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if self.colored else text

    def write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def status(self, text: str) -> None:
        "Redraw the progress line; nothing in a log, or while streamed text is in the middle of a line."
        if self.live and not self.open_line:
            width = shutil.get_terminal_size().columns - 1
            self.write(f"\r\x1b[K{text[:width]}")
            self.drawn = bool(text)

    def stream(self, text: str) -> None:
        "Text of a running cell, as it comes."
        if text:
            self._wipe()
            self.write(text if self.colored else plain(text))
            self.open_line = not text.endswith("\n")

    def line(self, text: str = "") -> None:
        self._wipe()
        self.write(("\n" if self.open_line else "") + text + "\n")
        self.open_line = False

    def _wipe(self) -> None:
        if self.drawn:
            self.write("\r\x1b[K")
            self.drawn = False


def verdict(nb: Notebook, screen: Screen) -> str:
    "The one line about a notebook."
    color = {"passed": "green", "failed": "red", "skipped": "yellow"}[nb.state]
    head = f"{screen.paint(f'{nb.state:8}', color)}{nb.label}"
    if nb.state == "skipped":
        return f"{head}  ({nb.why})"
    ran = sum(r.state != "skipped" for r in nb.runs)
    extra = [f"{plural(len(cells), 'cell')} skipped: {reason} (cell {', '.join(map(str, cells))})"
             for reason, cells in skip_reasons(nb).items()]
    return "  ".join([head, f"{plural(ran, 'cell')}, {clock(nb.seconds)}", *(f"· {e}" for e in extra + nb.notes)])


def skip_reasons(nb: Notebook) -> dict[str, list[int]]:
    reasons: dict[str, list[int]] = {}
    for r in nb.runs:
        if r.state == "skipped":
            reasons.setdefault(r.reason, []).append(r.cell)
    return reasons


def headline(nb: Notebook, fault: Fault) -> str:
    "Notebook, cell, line and cause."
    where = nb.label
    if fault.cell:
        where += f", cell {fault.cell}" + (f" (id {fault.cell_id})" if fault.cell_id else "")
        where += f", line {fault.line}" if fault.line else ""
    return visible(f"{where}: {one_line(fault.cause, 240)}")


def report(nb: Notebook, fault: Fault, screen: Screen) -> str:
    "The headline and below it, indented, source, traceback and last output."
    parts = [screen.paint("FAILED  ", "red") + screen.paint(headline(nb, fault), "bold")]
    if fault.source:
        parts.append(around(fault.source, fault.line, screen))
    if len(fault.cause.splitlines()) > 1:
        parts.append(block(fault.cause, 20))
    if fault.traceback:
        parts.append(block(fault.traceback, 40))
    said = OWN_FRAMES.sub("", shown_text([o for o in fault.outputs if o["output_type"] != "error"]))
    if said.strip():
        parts.append("    last output:\n" + block(said[-3000:], 10, last=True))
    return "\n".join(parts)


def around(source: str, line: int | None, screen: Screen, context: int = 3) -> str:
    "The source near `line`, which is marked; the beginning when it is not known."
    lines = source.rstrip("\n").split("\n")
    first, last = (max(1, line - context), min(len(lines), line + context)) if line else (1, min(len(lines), 8))
    rows = []
    for n in range(first, last + 1):
        row = visible(f"  {'→' if n == line else ' '} {n:3} │ {lines[n - 1][:160]}")
        rows.append(screen.paint(row, "bold") if n == line else row)
    return "\n".join(rows + ([f"        … {plural(len(lines) - last, 'line')} more"] if last < len(lines) else []))


def block(text: str, limit: int, last: bool = False) -> str:
    "At most `limit` lines, indented: the first and last ones, or the last only."
    lines = [visible(t[:300]) for t in text.rstrip().split("\n")]
    if len(lines) > limit:
        cut = len(lines) - limit
        head = [] if last else lines[:limit // 3]
        lines = [*head, f"… {plural(cut, 'line')} …", *lines[len(head) - limit:]]
    return "\n".join("    " + t for t in lines)


def slowest(nbs: list[Notebook], n: int) -> str:
    "A table of the `n` slowest cells."
    rows = sorted(((r.seconds, nb, r) for nb in nbs for r in nb.runs if r.state != "skipped"), key=lambda r: -r[0])[:n]
    width = max((len(nb.label) for _, nb, _ in rows), default=0)
    return "\n".join([f"slowest {plural(len(rows), 'cell')}:"] + [
        f"  {clock(s):>10}  {nb.label:{width}}  cell {r.cell:3}  {r.title}" for s, nb, r in rows])


# -- files ------------------------------------------------------------------------------------------------------------

def junit(nbs: list[Notebook]) -> bytes:
    "JUnit XML: a suite a notebook, a case a cell; a fault that belongs to no cell is a case of its own."
    from xml.etree import ElementTree as ET

    def clean(s) -> str:
        return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", str(s))
    top = ET.Element("testsuites")
    for nb in nbs:
        suite = ET.SubElement(top, "testsuite", name=clean(nb.label), time=f"{nb.seconds:.3f}")
        for r in nb.runs:
            name = f"cell {r.cell}" + (f" ({r.cell_id})" if r.cell_id else "") + f": {r.title}"
            case = ET.SubElement(suite, "testcase", classname=clean(nb.label), name=clean(name),
                                 time=f"{r.seconds:.3f}")
            if r.state == "skipped":
                ET.SubElement(case, "skipped", message=clean(r.reason))
            for f in (f for f in nb.faults if f.cell == r.cell):
                ET.SubElement(case, "failure", message=clean(headline(nb, f))).text = clean(f.traceback or f.cause)
        for f in (f for f in nb.faults if not f.cell):
            case = ET.SubElement(suite, "testcase", classname=clean(nb.label), name="the notebook", time="0")
            ET.SubElement(case, "failure", message=clean(headline(nb, f))).text = clean(f.cause)
        if nb.state == "skipped":
            case = ET.SubElement(suite, "testcase", classname=clean(nb.label), name="the notebook", time="0")
            ET.SubElement(case, "skipped", message=clean(nb.why))
    for e in [*top, top]:
        for key, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            e.set(key, str(len(list(e.iter(tag)))))
        e.set("errors", "0")
    top.set("time", f"{sum(nb.seconds for nb in nbs):.3f}")
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(top, encoding="utf-8") + b"\n"


PAGE = """
import sys, warnings
warnings.simplefilter("ignore")
import nbformat
from nbconvert import HTMLExporter
nb = nbformat.reads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"), as_version=4)
for c in nb.cells:
    c.metadata.pop("execution", None)
page, _ = HTMLExporter(template_name="lab", embed_images=True, require_js_url="", jquery_url="").from_notebook_node(
    nb, resources={"metadata": {"name": sys.argv[1], "path": "."}})
page = page.replace('<script src=""></script>', "")
sys.stdout.buffer.write(page.encode("utf-8", "replace"))
"""


def start_page(nb: Notebook) -> tuple[subprocess.Popen, bytes]:
    "Start making the executed notebook's page, in a process of its own: nbconvert is large. See `finish_page`."
    doc = nb.with_outputs(counts=True)
    doc = {**doc, "metadata": {k: v for k, v in doc.get("metadata", {}).items() if k != "widgets"}}
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    proc = subprocess.Popen([sys.executable, "-c", PAGE, nb.path.stem], cwd=nb.path.parent, env=env,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return proc, json.dumps(doc).encode("utf-8", "surrogatepass")


def finish_page(proc: subprocess.Popen, data: bytes) -> tuple[bytes, str]:
    "The page, or why there is none."
    page, err = proc.communicate(data)
    lines = err.decode("utf-8", "replace").strip().splitlines()
    return (page, "") if proc.returncode == 0 else (b"", lines[-1] if lines else f"status {proc.returncode}")


class Progress:
    "The live line: what runs, how far, how long."

    def __init__(self, screen: Screen, total: int):
        self.screen, self.total, self.done, self.start = screen, total, 0, time.monotonic()
        self.running: dict[Notebook, list] = {}            # notebook -> [cell number, cells, since]

    def draw(self) -> None:
        now = time.monotonic()
        parts = [f"{self.done}/{self.total} notebooks, {clock(now - self.start)}"] if self.total > 1 else []
        parts += [f"{nb.path.stem} cell {at}/{n} {clock(now - since)}"
                  for nb, (at, n, since) in self.running.items()]
        self.screen.status(" │ ".join(parts))


def write_page(path: Path, page: bytes) -> None:
    from common import atomic_write
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page)
