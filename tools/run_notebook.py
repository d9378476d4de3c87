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

from common import Misuse, find_settings
from runner.crew import end_orphans, run_notebooks
from runner.supervisor import SUBREAPER, prctl

TOOL = "run_notebook.py"
NUMBER = r"(\d{1,9}(?:\.\d*)?|\.\d+)"
FLAG = "True|False", lambda text: text == "True", "takes no value"
READ = {                                                   # option -> what it looks like, what it becomes, in words
    "slow": FLAG, "save": FLAG, "fail_fast": FLAG, "stream": FLAG,
    "device": ("auto|cpu|cuda", str, "is auto, cpu or cuda"),
    "workers": (r"0*[1-9]\d{0,8}", int, "should be a whole number from 1 up"),
    "timeout": (NUMBER, float, "should be a number from 0 up"),
    "memory": (rf"(?i){NUMBER}\s*([GM]B?)?", lambda text: gigabytes(text), "should be a size such as 2G or 500M"),
    "html": ("(?s)(?!(True|False)$).+", lambda text: Path(text).absolute(), "needs a folder"),
    "junit": ("(?s)(?!(True|False)$).+", lambda text: Path(text).absolute(), "needs a file"),
    "durations": (r"\d{1,9}", int, "should be a whole number from 0 up"),
}


def gigabytes(text: str) -> float:
    "2, 2G and 2GB are the same, 500M is half a one."
    return float(re.sub("[^0-9.]", "", text)) / (1000 if "M" in text.upper() else 1)


def options(*paths, slow=False, device="auto", workers=None, timeout=None, memory=0, save=False, html=None,
            junit=None, durations=0, fail_fast=False, stream=False) -> SimpleNamespace:
    """Run notebooks as tests, each in a fresh kernel of this Python.

    Args:
        paths: notebooks, folders or globs; all of the project's notebooks when there are none.
        slow: run cells marked #slow too.
        device: auto, cpu or cuda; what GROUNDUP_DEVICE is set to, and whether cells marked #cuda run.
        workers: notebooks at a time; as many as cores by default, one on a GPU. CPU threads are divided among them.
        timeout: seconds a cell may take (default: cell_timeout or slow_cell_timeout of settings.ini); 0 is no limit.
        memory: what a kernel and all it starts may hold, as in 2G or 500M (a number alone is GB); 0 is no limit. A
            notebook that holds more fails, the others run on. It is looked at many times a second, on every system;
            only on Linux is memory that processes share counted once.
        save: write the new outputs into the notebooks, cleaned; cells that were skipped keep theirs. A file that was
            changed meanwhile is left alone, and the notebook with its outputs goes to the out_path of settings.ini.
        html: folder for a page of each executed notebook.
        junit: file for a JUnit XML report.
        durations: list so many of the slowest cells.
        fail_fast: stop at the first failure.
        stream: print what the cells print, as they do.
    """
    given = locals()
    opts = SimpleNamespace(paths=paths, **{name: read(name, given[name]) for name in READ})
    opts.settings = find_settings()
    opts.settings = opts.settings if opts.settings.root else find_settings(Path(__file__).parent)
    pre, hours4 = ("slow_", 14400) if opts.slow else ("", 0)
    opts.cell = opts.settings.number(f"{pre}cell_timeout", hours4 or 600) if opts.timeout is None else opts.timeout
    opts.notebook = max(opts.settings.number(f"{pre}notebook_timeout", hours4 or 1800), opts.timeout or 0)
    return opts


def read(name: str, value):
    "An option as it is meant; raises `Misuse` for what makes no sense."
    look, become, words = READ[name]
    if value is None:
        return None
    if not re.fullmatch(look, str(value)):
        raise Misuse(f"--{name} {words}, not {value!r}")
    return become(str(value))


def command_line(argv: list[str]) -> SimpleNamespace | None:
    "What fire makes of `argv`: everything as text, as it would read 01 as a number. `None` when it showed its help."
    import fire
    from fire.decorators import SetParseFn
    if "-" in argv:                                        # to fire it is more than a name
        raise Misuse("-: no such file or folder")
    flags = {f"--{name.replace('_', sign)}" for name in READ if READ[name] is FLAG for sign in "_-"}
    args = [f"{a}=True" if a in flags else a for a in argv]        # or it takes a path after a flag as its value
    opts = fire.Fire(SetParseFn(str)(options), args, name=TOOL, serialize=lambda result: None)
    return opts if isinstance(opts, SimpleNamespace) else None


def main(argv: list[str] | None = None) -> int:
    "The command: returns the exit status."
    for out in (sys.stdout, sys.stderr):
        getattr(out, "reconfigure", dict)(errors="replace")
    if sys.platform == "win32":                            # zmq needs a loop that selects
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    try:
        opts = command_line(sys.argv[1:] if argv is None else argv)
        return run_notebooks(opts) if opts else 0
    except Misuse as e:
        print(f"{TOOL}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:                                # who read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


if __name__ == "__main__":
    prctl(SUBREAPER, 1)                                    # what a killed supervisor leaves comes to us
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the rest takes no time
    end_orphans()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)                                       # all is ended: spare the interpreter's own slow goodbye
