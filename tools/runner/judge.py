"""What went wrong in a cell, from the kernel's reply, from the time it took, from what it held, and from its death."""
import re
import signal
from types import SimpleNamespace

from runner.notebook import Fault
from runner.process import Kernel
from runner.text import plain, without_frames


def reply(said: dict, cell, numbers: dict) -> Fault | None:
    "The fault in a kernel's reply, if any; `numbers` are those of the cells by the kernel's own count."
    must_raise = "raises-exception" in cell.metadata.get("tags", [])
    if any(p.get("source") == "ask_exit" for p in said.get("payload", [])):
        return Fault("exit() ends the kernel: a notebook runs to its end")
    shown = said.get("shown")                              # an error, also one that was not raised
    if said.get("status") == "ok" and not shown:
        return Fault("it is tagged raises-exception, and did not raise") if must_raise else None
    if must_raise:
        return None
    error = shown or said
    name, value = error.get("ename", "Error"), plain(str(error.get("evalue", ""))).strip()
    value = re.sub(r" \(\d+\.py, line \d+\)$", "", value)  # a syntax error's: the cell is named anyway
    cause = f"{name}: {value}" if value else name
    if name == "StdinNotImplementedError":
        cause = "asks for input, and nobody is there to answer (input(), getpass() or a debugger)"
    elif name == "SystemExit":
        cause = f"SystemExit: {value} (sys.exit ends nothing in a notebook: stop by raising an error)"
    frames = without_frames(error.get("frames") or plain("\n".join(map(str, error.get("traceback", [])))))
    frames = re.sub(r'File "cell In\[(\d+)\]"', lambda m: f"Cell {numbers.get(int(m[1]), '?')}", frames)
    line = error.get("line") or None
    if line:
        line += len(cell.source) - len(cell.source.lstrip("\n"))   # IPython drops leading blank lines
    return Fault(cause, line=line, traceback=frames)


def too_long(kernel: Kernel, opts: SimpleNamespace, whole: bool) -> Fault:
    "A time-out, of the whole notebook or of a cell, with the line it hung on."
    return located(kernel, f"the notebook took longer than its {opts.notebook:g} s (notebook_timeout in settings.ini)"
                   if whole else f"the cell took longer than its {opts.cell:g} s (--timeout)")


def died(kernel: Kernel) -> Fault:
    "A kernel that is gone, with the line that did it where it is known."
    status = kernel.status()
    return located(kernel, kernel.reason or f"the kernel {'ended: ' if status >= 0 else 'was '}{ending(status)}")


def located(kernel: Kernel, cause: str) -> Fault:
    line, stack = kernel.last_stack()
    return Fault(cause, line=line, traceback=stack)


def ending(status: int) -> str:
    "An exit status in words."
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    why = {"SIGKILL": ", as the system does when memory runs out", "SIGSEGV": ", a crash in compiled code",
           "SIGABRT": ", an abort in compiled code"}.get(name, "")
    return f"killed by {name}{why}"
