"""In the kernel's process: a record of the files that a notebook writes."""
import json
import os
import sys
import time
from collections.abc import Callable

WRITES = {"open": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "os.rename": 1, "os.link": 1,
          "os.symlink": 1}                                 # event -> which of its arguments is the path
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.forkpty", "os.spawn", "os.startfile"}


class Watch:
    """Records, as an audit hook, each path under `roots` that Python code here or in a forked child opens for writing,
    renames, makes or removes, with what was there before, and the first time another program is started."""

    def __init__(self, log: str, roots: list[str], on_kill: Callable[[int], None]):
        self.fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.roots, self.on_kill = tuple(os.path.join(r, "") for r in roots), on_kill
        self.seen: set[str] = set()

    def __call__(self, event: str, args: tuple) -> None:
        try:
            if event in WRITES:
                if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                    return
                self.note(args[WRITES[event]])
                if event == "os.rename":
                    self.note(args[0])
            elif event == "import":
                self.watch_torch()
            elif event in STARTS:
                self.write("", [time.time_ns(), 0, 0])
            elif event == "os.kill" and args[1]:           # signal 0 only asks whether there is such a process
                self.on_kill(args[0])
        except Exception:                                  # never the notebook's problem
            pass

    def note(self, path) -> None:
        "Remember `path` and its state before the first write."
        if isinstance(path, int):
            return
        path = os.path.abspath(os.fsdecode(path))
        if path.startswith(self.roots):
            try:
                s = os.lstat(path)
                self.write(path, [s.st_mtime_ns, s.st_size, s.st_ino])
            except OSError:
                self.write(path, None)

    def write(self, what: str, *more) -> None:
        "Record a path, that a program was started (\"\"), or what `overhear` has heard, the first time."
        if what not in self.seen:
            self.seen.add(what)
            os.write(self.fd, (json.dumps([what, *more]) + "\n").encode("ascii"))

    def watch_torch(self) -> None:
        "torch.save writes from C++, unseen by audit hooks: wrap its writer once torch has come so far."
        cls = getattr(sys.modules.get("torch.serialization"), "_open_zipfile_writer_file", None)
        if cls and "torch" not in self.seen:
            self.seen.add("torch")
            init = cls.__init__
            cls.__init__ = lambda writer, name, *a, **k: (self.note(name), init(writer, name, *a, **k))[1]
