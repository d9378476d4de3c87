"""Run notebooks as tests: each in a fresh kernel of this Python, any failure reported so that it can be found.

    tools/run_notebook.py                        all of the project's notebooks, in number order
    tools/run_notebook.py nbs/01_matmul.ipynb    one; also folders and globs
    tools/run_notebook.py --slow --workers 1     everything, one at a time

Exit status 0: all passed; 1: something failed; 2: called wrongly.
"""
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # until something runs, Ctrl-C just ends it

import asyncio
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import command
from common import Misuse, find_settings
from runner.crew import end_orphans, run_notebooks
from runner.supervisor import SUBREAPER, prctl

TOOL = "run_notebook.py"
NUMBER = r"(\d{1,9}(?:\.\d*)?|\.\d+)"
READ = {                                                   # option -> what it looks like, what it becomes, in words
    "device": ("auto|cpu|cuda", str, "is auto, cpu or cuda"),
    "workers": (r"0*[1-9]\d{0,8}", int, "should be a whole number from 1 up"),
    "timeout": (NUMBER, float, "should be a number from 0 up"),
    "memory": (rf"(?i){NUMBER}\s*([GM]B?)?", lambda text: gigabytes(text), "should be a size such as 2G or 500M"),
    "html": ("(?s)(?!(True|False)$).+", lambda text: Path(text).absolute(), "needs a folder"),
    "durations": (r"\d{1,9}", int, "should be a whole number from 0 up"),
}


def gigabytes(text: str) -> float:
    "2, 2G and 2GB are the same, 500M is half a one."
    return float(re.sub("[^0-9.]", "", text)) / (1000 if "M" in text.upper() else 1)


def describe(*paths, slow=False, device="auto", workers=None, timeout=None, memory=0, save=False, html=None,
             durations=0, stream=False, importers=False) -> SimpleNamespace:
    """Run notebooks as tests, each in a fresh kernel of this Python.

    PATHS  notebooks, folders or globs; all of the project's notebooks when there are none.
    --slow  run cells marked #slow too.
    --device  auto, cpu or cuda; what GROUNDUP_DEVICE is set to, and whether cells marked #cuda run.
    --workers  notebooks at a time; as many as cores by default, one on a GPU. CPU threads are divided among them.
    --timeout  seconds a cell may take (default: cell_timeout or slow_cell_timeout of settings.ini); 0 is no limit.
    --memory  what a kernel and all it starts may hold, as in 2G or 500M (a number alone is GB); 0 is no limit. A
        notebook that holds more fails, the others run on. It is looked at ten times a second, on every system;
        only on Linux is memory that processes share counted once.
    --save  write the new outputs into the notebooks, cleaned; cells that were skipped keep theirs. A file that was
        changed meanwhile is left alone, and the notebook with its outputs goes to the out_path of settings.ini.
    --html  folder for a page of each executed notebook.
    --durations  list so many of the slowest cells.
    --stream  print what the cells print, as they do.
    --importers  run also the notebooks that import the modules of those named, directly or not.
    """
    return SimpleNamespace(**locals())


def options(**given) -> SimpleNamespace:
    "The options as they are meant; raises `Misuse` for what makes no sense."
    for name, (look, become, words) in READ.items():
        if (value := given[name]) is not None:
            if not re.fullmatch(look, str(value)):
                raise Misuse(f"--{name} {words}, not {value!r}")
            given[name] = become(str(value))
    opts = SimpleNamespace(**given, settings=find_settings())
    opts.settings = opts.settings if opts.settings.root else find_settings(Path(__file__).parent)
    pre, hours4 = ("slow_", 14400) if opts.slow else ("", 0)
    opts.cell = opts.settings.number(f"{pre}cell_timeout", hours4 or 600) if opts.timeout is None else opts.timeout
    opts.notebook = max(opts.settings.number(f"{pre}notebook_timeout", hours4 or 1800), opts.timeout or 0)
    return opts


def command_line(argv: list[str]) -> SimpleNamespace:
    return options(**command.call(TOOL, describe, argv))


def main(argv: list[str] | None = None) -> int:
    "The command: returns the exit status."
    if sys.platform == "win32":                            # zmq needs a loop that selects
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    return command.run(TOOL, describe, lambda **given: run_notebooks(options(**given)), argv)


if __name__ == "__main__":
    prctl(SUBREAPER, 1)                                    # what a killed supervisor leaves comes to us
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the rest takes no time
    end_orphans()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)                                       # all is ended: spare the interpreter's own slow goodbye
