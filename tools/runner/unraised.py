"""In the kernel's process: what fails without being raised is noted, as nothing of it ends a cell."""
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from runner.messages import Messages
from runner.text import one_line


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
