"""In the kernel's process: its messages on their way to the runner, each held to a size, and what failed in it.

A cell may print forever, and nobody should hold all of it: of a long text the first and the last part go out, of many
large displays the first. An error may be shown without being raised, by a magic, a display, a widget: the reply to each
cell says which was shown last, with its line and traceback. What fails without being
raised or shown is noted, as nothing of it ends a cell.
"""
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress

from runner.text import cut, one_line, shorten

RICH = 40_000_000                                          # characters of a cell's displays, after which they are cut
BIG, BIG_LATE = 20_000_000, 1_000_000                      # characters of one display: while there is room, and later


class Messages:
    "Every message of the kernel passes here; `after_cell` is called when a cell has run."

    def __init__(self, shell, stdout, stderr):
        self.shell, self.streams = shell, (stdout, stderr)
        self.count, self.rich = 0, 0                       # the kernel's number of the running cell; its displays' size
        self.shown: list[dict] = []                        # errors, since the last reply

    def passing(self, send):
        "`Session.send`, by way of this object."
        def passing(session, stream, msg_or_type, content=None, *args, **kw):
            with suppress(Exception):                      # never the notebook's problem
                if isinstance(msg_or_type, str):
                    self.look(msg_or_type, content or {})
                else:
                    self.look(msg_or_type["header"]["msg_type"], msg_or_type["content"])
            return send(session, stream, msg_or_type, content, *args, **kw)
        return passing

    def look(self, kind: str, body: dict) -> None:
        "Cut what is too big of a message; remember an error, and tell of it in the reply."
        if "traceback" in body:
            body["evalue"] = shorten(body["evalue"], 100_000)
            body["traceback"] = [shorten(t, 100_000) for t in body["traceback"]]
        if kind == "execute_input":
            self.count, self.rich = body["execution_count"], 0
        elif kind == "stream":
            body["text"] = cut(body["text"])
        elif kind in ("display_data", "execute_result", "update_display_data"):
            size = sum(len(v) for v in body["data"].values() if isinstance(v, str))
            self.rich += size
            if size > (BIG if self.rich <= RICH else BIG_LATE):
                body["data"].clear()
                body["data"]["text/plain"] = f"… an output of {size:,} characters left out …"
        elif kind == "error":
            self.shown.append(body | {"ename": body["ename"] + ""})        # of a type that it may have
        elif kind == "execute_reply" and self.shown:
            body["shown"] = self.shown.pop()
            self.shown.clear()

    def showing(self, show):
        "`shell.showtraceback`, by way of this object: not all that it shows is a message."
        def showing(*args, **kw):
            before = len(self.shown)
            show(*args, **kw)
            with suppress(Exception):                      # an odd one: there is IPython's own traceback
                self.tell(sys.last_value, len(self.shown) == before)
        return showing

    def after_cell(self, result) -> None:
        error = result.error_before_exec or result.error_in_exec
        with suppress(Exception):
            if error is not None:
                self.tell(error, not self.shown)

    def tell(self, error, new: bool) -> None:
        "Add to the error shown last, or to a new one, its line in a cell and Python's own traceback of it."
        if new:
            self.shown.append({"ename": type(error).__name__, "evalue": shorten(str(error), 100_000)})
        cells = getattr(self.shell.compile, "_filename_map", {})       # code that a cell runs as one has another number
        places = [(frame.f_code.co_filename, n) for frame, n in traceback.walk_tb(error.__traceback__)]
        places += [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
        lines = [n for file, n in places if cells.get(file) == self.count]
        text = re.sub(r'(?<=File ")[^"\n]+', lambda m: f"cell In[{cells[m[0]]}]" if m[0] in cells else m[0],
                      "".join(traceback.format_exception(error)))
        text = re.sub(r"\n +[~^]+(?=\n)(?!\n(Syntax|Indentation|Tab)Error)", "", text)       # these marks vary
        self.shown[-1] |= {"line": int(lines[0] or 0) if lines else 0, "frames": shorten(text, 100_000)}

    def flush(self) -> None:
        for stream in self.streams:
            with suppress(Exception):                      # closed by the notebook
                stream.flush()


def overhear(messages: Messages, write: Callable[[str], None]) -> None:
    "From now on, `write` the kernel's number of the running cell and what failed: a command, thread, task, destructor."
    from ipykernel import zmqshell
    from IPython.core import interactiveshell
    from IPython.utils._process_common import process_handler

    def note(text: str) -> None:
        with suppress(Exception):                          # never the notebook's problem
            write(f"{messages.count} {one_line(text)}")

    def ended(cmd: str, status: int) -> int:
        if status:
            note(f"`{cmd}` ended with status {status}")
        return status

    def getoutput(cmd: str) -> str:
        "IPython's, which forgets the status."
        out = process_handler(cmd, lambda p: (p.communicate()[0], ended(cmd, p.returncode))[0], subprocess.STDOUT)
        return (out or b"").decode(errors="replace")

    def telling(hook, what: str):
        def tell(args):
            if args.exc_type is not SystemExit:
                note(f"{what} {args.exc_type.__name__}: {args.exc_value}")
            hook(args)
        return tell

    def in_a_task(record) -> bool:
        if record.exc_info:
            note(f"{record.getMessage().splitlines()[0]}: {record.exc_info[1]!r}")
        return True

    system = zmqshell.system
    zmqshell.system = lambda cmd: ended(cmd, system(cmd))
    if os.name == "posix":
        interactiveshell.getoutput = getoutput
    threading.excepthook = telling(threading.excepthook, "a thread ended with")
    sys.unraisablehook = telling(sys.unraisablehook, "Python ignored")
    logging.getLogger("asyncio").addFilter(in_a_task)
