"""In the kernel's process: ipykernel's kernel, which besides records what the runner wants to know."""
import faulthandler
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.messages import Messages, overhear
from runner.strays import Watch


def last_words(folder: Path, messages: Messages) -> Callable[[int], None]:
    "What to call before process `pid` ends or gets a signal: a death of this one leaves its line, and all it printed."
    me, file = os.getpid(), open(folder / "fault.log", "a", encoding="utf-8")  # noqa: SIM115 - open until the end
    targets = {me, 0, -getattr(os, "getpgrp", os.getpid)()}        # of signals that reach this process
    faulthandler.enable(file=file)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=file)

    def say(pid: int) -> None:
        if os.getpid() == me and pid in targets:
            faulthandler.dump_traceback(file=file, all_threads=False)
            messages.flush()
            time.sleep(0.3)                                # messages are sent by a thread, which a process takes along

    leave = os._exit

    def leave_with_words(status: int = 0) -> None:
        try:
            say(os.getpid())
        finally:
            leave(status)
    os._exit = leave_with_words
    return say


def be_kernel(folder: Path, roots: list[str]) -> None:
    "Be an IPython kernel with the connection file `folder`/kernel.json until told to end."
    with suppress(OSError):                                # when memory runs out, Linux should end a kernel
        Path("/proc/self/oom_score_adj").write_text("800")
    del sys.argv[1:], sys.path[0]                          # tools; IPython puts the working folder there
    for name in [n for n in sys.modules if n.partition(".")[0] == "runner"]:
        del sys.modules[name]                              # the name is the notebook's
    from ipykernel.kernelapp import IPKernelApp
    from jupyter_client.session import Session

    class App(IPKernelApp):
        def init_iopub(self, context):
            context.sndhwm = 0                             # a runner that is busy must not lose messages
            super().init_iopub(context)

    ipc = os.name == "posix" and len(os.fsencode(folder)) <= 90
    app = App.instance()
    app.initialize(["-f", str(folder / "kernel.json"), f"--transport={'ipc' if ipc else 'tcp'}",
                    f"--ip={folder / 'k' if ipc else '127.0.0.1'}", "--HistoryManager.hist_file=:memory:",
                    "--IPKernelApp.log_level=50"])
    for s in (sys.stdout, sys.stderr):                     # they echo there what other programs print: not needed
        if echo := getattr(s, "_original_stdstream_copy", None):
            os.dup2(os.open(os.devnull, os.O_WRONLY), echo)
    shell: Any = app.shell
    messages = Messages(shell, sys.stdout, sys.stderr)
    say = last_words(folder, messages)
    setattr(Session, "send", messages.passing(Session.send))  # noqa: B010 - not what a type checker likes
    shell.events.register("post_run_cell", messages.after_cell)
    (folder / "pid").write_text(str(os.getpid()))
    warnings.filterwarnings("ignore", message="To exit: use")  # IPython's advice on sys.exit
    watch = Watch(str(folder / "writes.log"), roots, say)
    shell.showtraceback = messages.showing(shell.showtraceback)
    overhear(messages, watch.write)
    sys.addaudithook(watch)
    app.start()
