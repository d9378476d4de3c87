"""In the kernel's process: ipykernel's kernel, which besides records what the runner wants to know."""
import faulthandler
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.messages import Messages
from runner.unraised import overhear
from runner.watch import Watch

HEARD_SECONDS = 2                                          # a dying kernel waits so long for the runner to hear all


class LastWords:
    """A death leaves the line it happened on in fault.log, and the runner hears all that was printed before.

    A message is sent by a thread of the library, after `flush` has returned, and a process that ends takes it along.
    So the runner is told that these are the last words; it answers by asking for the stack, which makes the file grow.
    """

    def __init__(self, app, folder: Path, messages: Messages):
        self.app, self.messages = app, messages
        self.me, self.parent = os.getpid(), {}
        self.targets = {self.me, 0, -getattr(os, "getpgrp", os.getpid)()}      # of signals that reach this process
        self.file = open(folder / "fault.log", "a", encoding="utf-8")  # noqa: SIM115 - open until the end
        faulthandler.enable(file=self.file)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, file=self.file)
        self.leave, os._exit = os._exit, self.exit

    def before_cell(self, info) -> None:
        self.parent = self.app.kernel.get_parent()

    def exit(self, status: int = 0) -> None:
        "In the place of `os._exit`."
        try:
            self.say(os.getpid())
        finally:
            self.leave(status)

    def say(self, pid: int) -> None:
        "`pid` is about to end or to get a signal: is it this process?"
        if os.getpid() != self.me or pid not in self.targets:
            return
        faulthandler.dump_traceback(file=self.file, all_threads=False)
        self.messages.release()
        size, end = os.fstat(self.file.fileno()).st_size, time.monotonic() + HEARD_SECONDS
        self.app.session.send(self.app.iopub_socket, "last_words", {}, parent=self.parent)
        while os.fstat(self.file.fileno()).st_size == size and time.monotonic() < end:
            time.sleep(0.002)


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
    words = LastWords(app, folder, messages)
    setattr(Session, "send", messages.passing(Session.send))  # noqa: B010 - not what a type checker likes
    shell.events.register("pre_run_cell", words.before_cell)
    shell.events.register("post_run_cell", messages.after_cell)
    (folder / "pid").write_text(str(os.getpid()))
    warnings.filterwarnings("ignore", message="To exit: use")  # IPython's advice on sys.exit
    watch = Watch(str(folder / "writes.log"), roots, words.say)
    shell.showtraceback = messages.showing(shell.showtraceback)
    overhear(messages, watch.write)
    sys.addaudithook(watch)
    app.start()
