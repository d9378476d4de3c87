"""Run notebooks as tests: each in a fresh kernel of this Python, any failure reported so that it can be found.

    tools/run_notebook.py                        all of the project's notebooks, in number order
    tools/run_notebook.py nbs/01_matmul.ipynb    one; also folders and globs
    tools/run_notebook.py --slow --workers 1     everything, one at a time

Exit status 0: all passed; 1: something failed; 2: called wrongly.
"""
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # until something runs, Ctrl-C just ends it

import asyncio
import os
import re
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import command
from common import find_settings
from runner.crew import run_notebooks
from runner.supervisor import LINUX, SUBREAPER, kill_children, prctl

NUMBER = r"(\d{1,9}(?:\.\d*)?|\.\d+)"


def reads(look: str, become: Callable, words: str) -> Callable:
    "A type of option: what it looks like, what it becomes, and that in words."
    def read(text: str):
        if not re.fullmatch(look, text):
            raise ArgumentTypeError(f"should be {words}, not {text!r}")
        return become(text)
    return read


def gigabytes(text: str) -> float:
    "2, 2G and 2GB are the same, 500M is half a one."
    return float(re.sub("[^0-9.]", "", text)) / (1000 if "M" in text.upper() else 1)


def parser() -> command.Parser:
    made = command.Parser("run_notebook.py", __doc__, "notebooks, folders or globs; none means all of the project's")
    add = made.add_argument
    made.flag("slow", "run cells marked #slow too")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="what GROUNDUP_DEVICE is set to, and whether cells marked #cuda run")
    add("--workers", type=reads(r"0*[1-9]\d{0,8}", int, "a whole number from 1 up"), metavar="N",
        help="notebooks at a time; as many as cores by default, one on a GPU. CPU threads are divided among them")
    add("--timeout", type=reads(NUMBER, float, "a number from 0 up"), metavar="SECONDS",
        help="for a cell (default: cell_timeout or slow_cell_timeout of settings.ini); 0 is no limit")
    add("--memory", type=reads(rf"(?i){NUMBER}\s*([GM]B?)?", gigabytes, "a size such as 2G or 500M"), default=0,
        metavar="SIZE", help="what a kernel and all it starts may hold, as in 2G or 500M (a number alone is GB); 0 is "
        "no limit. A notebook that holds more fails, the others run on. It is looked at ten times a second, on every "
        "system; only on Linux is memory that processes share counted once")
    made.flag("save", "write the new outputs into the notebooks, cleaned; cells that were skipped keep theirs. A file "
              "that was changed meanwhile is left alone, its outputs go to the out_path of settings.ini")
    add("--html", type=lambda text: Path(text).absolute(), metavar="FOLDER", help="for a page of each notebook")
    add("--durations", type=reads(r"\d{1,9}", int, "a whole number from 0 up"), default=0, metavar="N",
        help="list so many of the slowest cells")
    made.flag("stream", "print what the cells print, as they do")
    made.flag("importers", "run also the notebooks that import the modules of those named, directly or not")
    return made


def with_limits(opts: Namespace) -> Namespace:
    "Adds what settings.ini says; raises `Misuse`."
    found = find_settings()
    opts.settings = found if found.root else find_settings(Path(__file__).parent)
    pre, hours4 = ("slow_", 14400) if opts.slow else ("", 0)
    opts.cell = opts.settings.number(f"{pre}cell_timeout", hours4 or 600) if opts.timeout is None else opts.timeout
    whole = opts.settings.number(f"{pre}notebook_timeout", hours4 or 1800)
    opts.notebook = whole and max(whole, opts.timeout or 0)                     # 0 is no limit
    return opts


def command_line(argv: list[str]) -> Namespace:
    return with_limits(parser().parse_intermixed_args(argv))


def main(argv: list[str] | None = None) -> int:
    "The command: returns the exit status."
    if sys.platform == "win32":                            # zmq needs a loop that selects
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    return command.run(parser(), lambda opts: run_notebooks(with_limits(opts)), argv)


if __name__ == "__main__":
    prctl(SUBREAPER, 1)
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the rest takes no time
    if LINUX:                                              # what a killed supervisor left has come to this process
        kill_children({})
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)                                       # all is ended: spare the interpreter's own slow goodbye
