"""What is printed while notebooks run: lines that stay, and on a terminal one line of progress that is redrawn."""
import os
import shutil
import sys
import time

from runner.notebook import Notebook
from runner.text import clock, plain

COLORS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


class Screen:
    "Where everything is printed."

    def __init__(self):
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.colored = self.live and not os.environ.get("NO_COLOR")
        self.drawn, self.open_line = False, False
        self.streamed: tuple = ()                          # the notebook and the cell whose text came last

    def paint(self, text: str, color: str) -> str:
        return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if self.colored else text

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def status(self, text: str) -> None:
        "Redraw the progress line; nothing in a log, or while streamed text is in the middle of a line."
        if self.live and not self.open_line:
            width = shutil.get_terminal_size().columns - 1
            self.write(f"\r\x1b[K{text[:width]}")
            self.drawn = bool(text)

    def stream(self, nb: Notebook, index: int, text: str) -> None:
        "Text of a running cell, as it comes, under a rule with the cell's number."
        if text:
            if self.streamed != (nb, index):
                self.streamed = nb, index
                self.line(self.paint(f"── {nb.path.stem}, cell {index + 1}", "dim"))
            self.wipe()
            self.write(text if self.colored else plain(text))
            self.open_line = not text.endswith("\n")

    def line(self, text: str = "") -> None:
        self.wipe()
        self.write(("\n" if self.open_line else "") + text + "\n")
        self.open_line = False

    def wipe(self) -> None:
        if self.drawn:
            self.write("\r\x1b[K")
            self.drawn = False


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
