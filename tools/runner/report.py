"""What the runner says: its screen, verdicts in a line, what went wrong with all that helps, slow cells."""
import sys

from common import plural, printable

from runner.notebook import Fault, Notebook
from runner.save import shown_text
from runner.text import clock, one_line, plain, shorten, visible, without_frames


class Screen:
    "Where everything is printed."

    def __init__(self):
        self.open_line, self.streamed = False, ()          # is a line begun; the notebook and cell that wrote last

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self.open_line = not text.endswith("\n")

    def stream(self, nb: Notebook, index: int, text: str) -> None:
        "Text of a running cell, as it comes, under a rule with the cell's number."
        if text:
            if self.streamed != (nb, index):
                self.streamed = nb, index
                self.line(f"── {printable(nb.path.stem)}, cell {index + 1}")
            self.write(plain(text))

    def line(self, text: str) -> None:
        self.write(("\n" if self.open_line else "") + text + "\n")


def verdict(nb: Notebook) -> str:
    "The one line about a notebook."
    head = f"{nb.state:8}{nb.label}"
    skipped: dict[str, list[str]] = {}
    for i, reason in nb.skips.items():
        skipped.setdefault(reason, []).append(str(i + 1))
    notes = [f"{plural(len(cells), 'cell')} skipped: {reason} (cell {', '.join(cells)})"
             for reason, cells in skipped.items()] + nb.notes
    return "  ".join([head, f"{plural(len(nb.runs), 'cell')}, {clock(nb.seconds)}", *(f"· {n}" for n in notes)])


def failed(nb: Notebook, fault: Fault) -> str:
    "Notebook, cell, line and cause."
    where = nb.label
    if fault.run:
        where += f", cell {fault.run.number}" + (f" (id {fault.run.id})" if fault.run.id else "")
        where += f", line {fault.line}" if fault.line else ""
    return visible(f"FAILED  {where}: {one_line(fault.cause, 240)}")


def report(nb: Notebook, fault: Fault) -> str:
    "The headline and below it, indented, source, traceback and last output."
    parts, outputs = [failed(nb, fault)], []
    if fault.run:
        index = fault.run.number - 1
        parts.append(around(nb.source(nb.cells[index]), fault.line))
        outputs, _ = nb.executed[index]
    if len(fault.cause.splitlines()) > 1:
        parts.append(block(fault.cause, 7, 13))
    if fault.traceback:
        parts.append(block(fault.traceback, 13, 27))
    said = without_frames(shown_text([o for o in outputs if o["output_type"] != "error"]))
    if said.strip():
        parts.append("    last output:\n" + block(said, 0, 10))
    return "\n".join(parts)


def around(source: str, line: int | None, context: int = 3) -> str:
    "The source near `line`, which is marked; the beginning when it is not known."
    lines = source.rstrip("\n").split("\n")
    first, last = (max(1, line - context), min(len(lines), line + context)) if line else (1, min(len(lines), 8))
    rows = [visible(f"  {'→' if n == line else ' '} {n:3} │ {shorten(lines[n - 1], 160)}")
            for n in range(first, last + 1)]
    return "\n".join(rows + ([f"        … {plural(len(lines) - last, 'line')} more"] if last < len(lines) else []))


def block(text: str, head: int, tail: int) -> str:
    "The first and the last lines, indented."
    lines = text.rstrip().split("\n")
    if len(lines) > head + tail:
        lines[head:-tail] = [f"… {plural(len(lines) - head - tail, 'line')} …"]
    return "\n".join("    " + visible(shorten(t, 300)) for t in lines)


def slowest(nbs: list[Notebook], n: int) -> str:
    "A table of the `n` slowest cells."
    rows = sorted(((r.seconds, nb, r) for nb in nbs for r in nb.runs), key=lambda r: -r[0])[:n]
    width = max((len(nb.label) for _, nb, _ in rows), default=0)
    return "\n".join([f"slowest {plural(len(rows), 'cell')}:"] + [
        f"  {clock(s):>10}  {nb.label:{width}}  cell {r.number:3}  {visible(r.title)}" for s, nb, r in rows])
