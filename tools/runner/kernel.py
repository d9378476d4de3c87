"""In the kernel's process: ipykernel's kernel, which besides records what the runner wants to know."""
import os
import signal
import sys
import time
import warnings
from itertools import count
from pathlib import Path

from runner.messages import Messages
from runner.watch import Watch

HEARD_SECONDS = 2                                          # a dying kernel waits so long for the runner to hear all


class LastWords:
    """A death leaves the line it happened on in fault.log, and the runner hears all that was printed.

    A message is sent by a thread of the library, after `flush` has returned, and a process that ends takes it along:
    so the runner is asked whether it has it, and answers with a file."""

    def __init__(self, app, folder: Path, messages: Messages):
        import faulthandler
        self.app, self.folder, self.messages = app, folder, messages
        self.me, self.parent, self.numbers = os.getpid(), {}, count(1)
        self.file = open(folder / "fault.log", "a", encoding="utf-8")  # noqa: SIM115 - open until the end
        self.tools = os.path.exists, time.sleep, time.monotonic, faulthandler.dump_traceback  # notebooks replace things
        faulthandler.enable(file=self.file)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, file=self.file)
        self.leave, os._exit = os._exit, self.exit

    def before_cell(self, info) -> None:
        self.parent = self.app.kernel.get_parent()

    def on_kill(self, pid: int) -> None:
        "This process is about to send a signal to `pid`, perhaps to itself."
        if os.getpid() == self.me and pid in (self.me, 0, -os.getpgrp()):
            self.say()

    def exit(self, status: int = 0) -> None:
        "In the place of `os._exit`."
        try:
            if os.getpid() == self.me:
                self.say()
        finally:
            self.leave(status)

    def say(self) -> None:
        exists, sleep, clock, dump = self.tools
        dump(file=self.file, all_threads=False)
        self.messages.release()
        number, end = next(self.numbers), clock() + HEARD_SECONDS
        self.app.session.send(self.app.iopub_socket, "last_words", {"number": number}, parent=self.parent)
        while not exists(self.folder / f"heard-{number}") and clock() < end:
            sleep(0.002)


def be_first_to_go() -> None:
    "When memory runs out, Linux should end a kernel, not the runner or the desktop."
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:
        pass


def be_kernel(folder: Path, roots: list[str]) -> None:
    "Be an IPython kernel with the connection file `folder`/kernel.json until told to end."
    be_first_to_go()
    del sys.path[0]                                        # tools; IPython puts the working folder there
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
        if hasattr(s, "_original_stdstream_copy"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), s._original_stdstream_copy)
    messages = Messages(app.shell, sys.stdout, sys.stderr)
    Session.send = messages.passing(Session.send)
    words = LastWords(app, folder, messages)
    watch = Watch(str(folder / "writes.log"), roots, words.on_kill)
    app.shell.events.register("pre_run_cell", words.before_cell)
    app.shell.events.register("post_run_cell", messages.after_cell)
    (folder / "pid").write_text(str(os.getpid()))
    warnings.filterwarnings("ignore", message="To exit: use")  # IPython's advice on sys.exit
    sys.addaudithook(watch)
    app.start()
