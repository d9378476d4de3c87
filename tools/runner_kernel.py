"""Inside the kernel's process: `run_notebook.py` starts `python runner_kernel.py FOLDER RUNNER_PID` for each notebook.

On POSIX this process stays as a small supervisor and forks the kernel. It sees the kernel and everything the kernel
ever starts die (on Linux even what was daemonised), also when the runner itself is killed. The kernel is ipykernel's.
Besides, output is held to its first and last part, written files are recorded, an error leaves its traceback without
framework frames, and a death leaves the line it happened on. What is recorded is a file in FOLDER for the runner.
"""
import json
import os
import signal
import sys
import time
from pathlib import Path

LINUX = sys.platform.startswith("linux")
HEAD = TAIL = 200_000                                      # characters kept of each stream of a cell: first and last
BIG = 20_000_000                                           # characters of one rich output
HEARD_SECONDS = 2                                          # a dying kernel waits so long for the runner to hear all
STOPPERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM) if os.name == "posix" else ()
_real_exit = os._exit


# -- the supervisor ---------------------------------------------------------------------------------------------------

class Stop(BaseException):
    "The runner wants this kernel ended, or is gone."


def prctl(option: int, value: int) -> None:
    "Linux only, and silently nothing where it is not allowed."
    if LINUX:
        try:
            import ctypes
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
        except (OSError, AttributeError, ImportError):
            pass


def descendants() -> list[int]:
    "Every process below this one; outside Linux also those of this session."
    parent = {}
    if LINUX:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat", "rb") as f:
                    parent[int(pid)] = int(f.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                pass
    else:
        import subprocess
        rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True).stdout.split("\n")
        for pid, up, group in (map(int, r.split()) for r in rows if len(r.split()) == 3):
            parent[pid] = os.getpid() if group == os.getpgrp() else up
    found, todo = [], [os.getpid()]
    while todo:
        up = todo.pop()
        new = [p for p, q in parent.items() if q == up and p != os.getpid() and p not in found]
        found, todo = found + new, todo + new
    return found


def end_all(kernel: int, status: int | None) -> int | None:
    "Kill everything below, until nothing is left; returns the kernel's wait status."
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            pid = -1
            while pid:
                pid, st = os.waitpid(-1, os.WNOHANG)
                status = st if pid == kernel else status
        except ChildProcessError:
            if LINUX or not descendants():
                break
        time.sleep(0.005)
    return status


def leave(status: int | None) -> None:
    "End this process the way the kernel ended, so that the runner sees a signal as a signal."
    if status is not None and os.WIFSIGNALED(status):
        import resource
        sig = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sig not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(sig, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {sig})
        os.kill(os.getpid(), sig)
    _real_exit(os.WEXITSTATUS(status) if status is not None else 143)


def be_supervised() -> None:
    "In the forked kernel: signals as in any program, and death with the supervisor."
    for s in (*STOPPERS, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(s, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prctl(1, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPERS)


def supervise(folder: str, runner: int) -> None:
    "Fork: returns in the kernel's process, never in the supervisor's."
    alone, waiting = False, True

    def stop(signum, frame):
        nonlocal alone, waiting                            # a runner's death is told once for each of its threads,
        alone |= signum == signal.SIGHUP                   # and getppid() names it until the last of them is gone
        if waiting and (signum != signal.SIGALRM or os.getppid() != runner):
            waiting = False
            raise Stop
    for s in STOPPERS:
        signal.signal(s, stop)
    for s in (signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(s, signal.SIG_IGN)
    prctl(36, 1)                                           # PR_SET_CHILD_SUBREAPER: orphans come to us
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPERS)
    prctl(1, signal.SIGHUP)                                # PR_SET_PDEATHSIG: told when the runner dies
    kernel = os.fork()
    if kernel == 0:
        be_supervised()
        return
    status = None
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPERS)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)         # where there is no PDEATHSIG: look once a second
        while status is None and os.getppid() == runner:
            pid, st = os.waitpid(-1, 0)
            status = st if pid == kernel else None
        waiting = False
    except (Stop, ChildProcessError):
        waiting = False
    status = end_all(kernel, status)
    if alone or os.getppid() != runner:
        import shutil
        shutil.rmtree(folder, ignore_errors=True)
    leave(status)


# -- the kernel: what it records --------------------------------------------------------------------------------------

class Watch:
    """Records, as an audit hook, each path under `roots` that Python code here or in a forked child opens for writing,
    renames, makes or removes, with what was there before, and the first time another program is started."""
    WRITES = {"open": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "os.rename": 1, "os.link": 1,
              "os.symlink": 1}
    STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.forkpty", "os.spawn", "os.startfile")

    def __init__(self, log: str, roots: list[str], on_kill):
        self.fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.roots, self.on_kill, self.seen = tuple(roots), on_kill, set()

    def __call__(self, event: str, args: tuple) -> None:
        try:
            if event in self.WRITES:
                if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                    return
                self.note(args[self.WRITES[event]])
                if event == "os.rename":
                    self.note(args[0])
            elif event in self.STARTS:
                if "" not in self.seen:
                    self.seen.add("")
                    self.write(["start", time.time()])
            elif event == "os.kill":
                if args[1]:                                # signal 0 only asks whether there is such a process
                    self.on_kill(args[0])
        except Exception:                                  # never the notebook's problem
            pass

    def note(self, path) -> None:
        "Remember `path` and its state before the first write."
        if isinstance(path, int):
            return
        path = os.path.abspath(os.fsdecode(path))
        if path in self.seen or not path.startswith(self.roots):
            return
        self.seen.add(path)
        try:
            s = os.lstat(path)
            before = [s.st_mtime_ns, s.st_size, s.st_ino]
        except OSError:
            before = None
        self.write(["path", path, before])

    def write(self, row: list) -> None:
        os.write(self.fd, (json.dumps(row) + "\n").encode("ascii"))

    def watch_torch(self) -> None:
        "torch.save writes from C++, unseen by audit hooks: wrap its writer when torch is imported."
        import importlib.abc
        import importlib.util
        watch = self

        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name != "torch.serialization":
                    return None
                sys.meta_path.remove(self)
                spec = importlib.util.find_spec(name)
                run = spec.loader.exec_module

                def exec_module(module):
                    run(module)
                    cls = getattr(module, "_open_zipfile_writer_file", None)
                    if cls is not None:
                        init = cls.__init__
                        cls.__init__ = lambda self, name, *a, **k: (watch.note(name), init(self, name, *a, **k))[1]
                spec.loader.exec_module = exec_module
                return spec
        sys.meta_path.insert(0, Finder())


class Part:
    "What a stream of one cell has written: how much of its head is still to come, and its tail."

    def __init__(self):
        self.room, self.tail, self.kept, self.cut = HEAD, [], 0, 0

    def keep(self, text: str) -> None:
        self.tail.append(text)
        self.kept += len(text)
        if self.kept > 4 * TAIL:
            self.trim()

    def trim(self) -> str:
        tail = "".join(self.tail)
        self.cut += max(0, len(tail) - TAIL)
        self.tail = [tail[-TAIL:]]
        self.kept = len(self.tail[0])
        return self.tail[0]


class Limiter:
    "Holds each stream of a cell to its first and last part, and replaces a rich output that is far too big."

    def __init__(self):
        import threading
        self.lock, self.parts = threading.RLock(), {}

    def clear(self) -> None:
        self.parts = {}

    def limit_write(self, write):
        "`OutStream.write`, limited: past HEAD characters only the last TAIL are kept, for `release`."
        def limited(stream, text):
            if not isinstance(text, str):
                return write(stream, text)
            with self.lock:
                part = self.parts.get(stream.name)
                if part is None:
                    part = self.parts[stream.name] = Part()
                if part.room <= 0:
                    part.keep(text)
                    return len(text)
                head = text[:part.room]
                part.room -= len(head)
                if len(head) < len(text):
                    part.keep(text[len(head):])
            write(stream, head)
            return len(text)
        self.write = write
        return limited

    def release(self) -> None:
        "At a cell's end: write what was kept of the streams' last parts."
        with self.lock:
            parts, self.parts = self.parts, {}
        for name, part in parts.items():
            if part.tail:
                tail = part.trim()
                note = f"\n… {part.cut:,} characters left out …\n" if part.cut else ""
                self.write(getattr(sys, name), note + tail)
                getattr(sys, name).flush()

    def limit_send(self, send):
        "`Session.send`, limited."
        def limited(session, stream, msg_or_type, content=None, *args, **kw):
            try:
                kind = msg_or_type if isinstance(msg_or_type, str) else msg_or_type.get("header", {}).get("msg_type")
                body = content if isinstance(msg_or_type, str) else msg_or_type.get("content")
                if kind == "clear_output":
                    self.clear()
                elif kind == "error":
                    self.release()
                if kind in ("display_data", "execute_result", "update_display_data", "error", "execute_reply"):
                    shorten(body)
            except Exception:                              # never the notebook's problem
                pass
            return send(session, stream, msg_or_type, content, *args, **kw)
        return limited


def shorten(content: dict) -> None:
    "Cut what is too big to be meant, in place."
    data = content.get("data") or {}
    size = sum(len(v) for v in data.values() if isinstance(v, str))
    if size > BIG:
        data.clear()
        data["text/plain"] = f"… an output of {size:,} characters left out …"
    for key in ("evalue", "traceback"):
        if key in content:
            cut = [s if len(s) < 100_000 else s[:50_000] + "…" + s[-50_000:] for s in
                   ([content[key]] if isinstance(content[key], str) else content[key])]
            content[key] = cut if isinstance(content[key], list) else cut[0]


class Errors:
    "Leaves in `file`, for a cell that failed, the line of the cell and the traceback without framework frames."

    def __init__(self, shell, file: Path):
        self.shell, self.file = shell, file
        import ipykernel
        import IPython
        self.frameworks = tuple(str(Path(m.__file__).parent) for m in (IPython, ipykernel)) + (__file__,)

    def before(self, info=None) -> None:
        self.file.unlink(missing_ok=True)

    def after(self, result) -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            return
        try:
            import traceback
            cells = getattr(self.shell.compile, "_filename_map", {})
            te = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
            line = next((f.lineno for f in te.stack if f.filename in cells), None)
            if isinstance(error, SyntaxError) and line is None:
                line = error.lineno
            self.tidy(te, cells)
            text = "".join(te.format())
            self.file.write_text(json.dumps({"line": line, "text": text[:100_000]}), encoding="utf-8")
        except Exception:                                  # then the runner shows IPython's own traceback
            pass

    def tidy(self, te, cells: dict) -> None:
        "Drop framework frames and name cells, in `te` and in what it chains to."
        import traceback
        te.stack = traceback.StackSummary.from_list(
            [traceback.FrameSummary(f"cell In[{cells[f.filename]}]" if f.filename in cells else f.filename,
                                    f.lineno, f.name, lookup_line=False, line=f.line)
             for f in te.stack if not f.filename.startswith(self.frameworks)])
        if getattr(te, "filename", None) in cells:
            te.filename = f"cell In[{cells[te.filename]}]"
        for other in (te.__cause__, te.__context__, *(getattr(te, "exceptions", None) or ())):
            if other is not None:
                self.tidy(other, cells)


# -- the kernel: starting it ------------------------------------------------------------------------------------------

def watch_stdin() -> None:
    "Where there is no supervisor (Windows): the runner holds the other end of stdin; when it closes, it is gone."
    import threading
    fd = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def wait():
        while os.read(fd, 1):
            pass
        _real_exit(143)
    threading.Thread(target=wait, daemon=True).start()


def farewell(app, folder: Path):
    """Returns what waits until the runner has heard all that was printed.

    A message is sent by a thread of the library, after `flush` has returned, and a process that ends takes it along."""
    from itertools import count
    exists, sleep, clock, numbers = os.path.exists, time.sleep, time.monotonic, count(1)

    def wait():
        number, end = next(numbers), clock() + HEARD_SECONDS
        app.session.send(app.iopub_socket, "last_words", {"number": number})
        while not exists(folder / f"heard-{number}") and clock() < end:
            sleep(0.002)
    return wait


def last_words(folder: Path, heard):
    "Make a death leave the line it happened on; returns what to call when this process is about to kill itself."
    import faulthandler
    me, file = os.getpid(), open(folder / "fault.log", "a", encoding="utf-8")  # noqa: SIM115 - open until the end
    faulthandler.enable(file=file)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=file)

    def dying(pid=me):
        if os.getpid() == me and pid in (me, 0, -os.getpgrp()):
            faulthandler.dump_traceback(file=file, all_threads=False)
            for s in (sys.stdout, sys.stderr):
                s.flush()
            heard()

    def _exit(status=0):
        try:
            dying(os.getpid())
        finally:
            _real_exit(status)
    os._exit = _exit
    return dying


def be_first_to_go() -> None:
    "When memory runs out, the system should end a kernel, not the runner or the desktop."
    if LINUX:
        try:
            Path("/proc/self/oom_score_adj").write_text("800")
        except OSError:
            pass


def run_kernel(folder: Path) -> None:
    "Be an IPython kernel with the connection file `folder`/kernel.json until told to end."
    cfg = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del sys.path[0]                                        # tools/; IPython puts the working folder there
    import warnings

    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp
    from jupyter_client.session import Session

    class App(IPKernelApp):
        def init_iopub(self, context):
            context.sndhwm = 0                             # a runner that is busy must not lose messages
            super().init_iopub(context)

    app = App.instance()
    app.initialize(["-f", str(folder / "kernel.json"), f"--transport={cfg['transport']}", f"--ip={cfg['ip']}",
                    "--HistoryManager.hist_file=:memory:", "--IPKernelApp.log_level=50"])
    for s in (sys.stdout, sys.stderr):                     # they echo there what other programs print: not needed
        if hasattr(s, "_original_stdstream_copy"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), s._original_stdstream_copy)
    limiter, errors = Limiter(), Errors(app.shell, folder / "error.json")
    OutStream.write = limiter.limit_write(OutStream.write)
    Session.send = limiter.limit_send(Session.send)
    app.shell.events.register("pre_run_cell", errors.before)
    app.shell.events.register("post_run_cell", errors.after)
    app.shell.events.register("post_run_cell", lambda result: limiter.release())
    (folder / "pid").write_text(str(os.getpid()))
    warnings.filterwarnings("ignore", message="To exit: use")  # IPython's advice on sys.exit
    watch = Watch(str(folder / "writes.log"), cfg["roots"], last_words(folder, farewell(app, folder)))
    watch.watch_torch()
    sys.addaudithook(watch)
    app.start()


if __name__ == "__main__":
    if os.name == "posix":
        supervise(sys.argv[1], int(sys.argv[2]))
        be_first_to_go()
    else:
        watch_stdin()
    run_kernel(Path(sys.argv[1]))
