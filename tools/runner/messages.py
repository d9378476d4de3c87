"""In the kernel's process: its messages on their way to the runner, held to a size; errors with what helps to find them.

A cell may print forever, and nobody should hold all of it: the first and the last part of each stream go out, and so do
the first and the last displays. An error is told with the line of the cell and without the frames of IPython.
"""
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from traceback import TracebackException

from runner.text import shorten

ROOM = 200_000                                             # characters of a cell's stream: so many first, so many last
RICH, COUNT = 20_000_000, 200                              # the same of its displays, and how many
DISPLAYS = "display_data", "execute_result"


class Share:
    "One of a cell's streams, or its displays: what there is `room` for goes out, of the rest the last `most` is kept."

    def __init__(self, most: int):
        self.room = self.most = most
        self.kept: deque[tuple] = deque()
        self.held = self.total = 0

    def keep(self, item, size: int, units: int) -> None:
        self.kept.append((item, size))
        self.held, self.total = self.held + size, self.total + units
        while self.held - self.kept[0][1] >= self.most:
            self.held -= self.kept.popleft()[1]

    def items(self) -> list:
        return [item for item, _ in self.kept]


class Messages:
    "Every message of the kernel passes here; `after_cell` is called when a cell has run."

    def __init__(self, shell, stdout, stderr):
        import ipykernel
        import IPython
        self.shell, self.streams = shell, {"stdout": stdout, "stderr": stderr}
        self.frameworks = tuple(str(Path(m.__file__).parent) for m in (IPython, ipykernel))
        self.lock, self.error = threading.Lock(), {}
        self.shares: dict[str, Share] | None = {}          # None: all may pass

    def passing(self, send):
        "`Session.send`, by way of this object."
        def passing(session, stream, msg_or_type, content=None, *args, **kw):
            again = partial(send, session, stream, msg_or_type, content, *args, **kw)
            try:
                if isinstance(msg_or_type, str):
                    kind, body = msg_or_type, content
                else:
                    kind, body = msg_or_type["header"]["msg_type"], msg_or_type["content"]
                if self.held_back(kind, body, again):
                    return None
            except Exception:                              # never the notebook's problem
                pass
            return again()
        return passing

    def held_back(self, kind: str, body: dict, again) -> bool:
        "Whether a message need not be sent now; `again` sends it. What is too big in it is cut."
        if kind == "error":
            self.release()
        if kind == "execute_reply":
            body |= self.error
        if kind in ("error", "execute_reply") and "traceback" in body:
            body["evalue"] = shorten(body["evalue"], 100_000)
            body["traceback"] = [shorten(t, 100_000) for t in body["traceback"]]
        with self.lock:
            if kind == "clear_output" and self.shares:
                self.shares.clear()
            if self.shares is None or kind not in ("stream", *DISPLAYS):
                return False
            if kind == "stream":
                share, text = self.shares.setdefault(body["name"], Share(ROOM)), body["text"]
                body["text"], rest = text[:share.room], text[share.room:]
                share.room -= len(body["text"])
                if rest:
                    share.keep(rest[-ROOM:], len(rest[-ROOM:]), len(rest))
                return not body["text"]
            share, data = self.shares.setdefault("", Share(RICH)), body["data"]
            size = sum(len(v) for v in data.values() if isinstance(v, str))
            if size > RICH:
                data.clear()
                data["text/plain"] = f"… an output of {size:,} characters left out …"
            size = min(max(size, RICH // COUNT), RICH)
            if share.room <= 0:
                share.keep(again, size, 1)
                return True
            share.room -= size
            return False

    def release(self) -> None:
        "Send what was kept."
        self.flush()
        with self.lock:
            shares, self.shares = self.shares or {}, None
        for name, share in shares.items():
            if name in self.streams and share.kept:
                tail = "".join(share.items())[-ROOM:]
                cut = share.total - len(tail)
                self.streams[name].write((f"\n… {cut:,} characters left out …\n" if cut else "") + tail)
            elif share.kept:
                cut = share.total - len(share.kept)
                self.streams["stdout"].write(f"… {cut:,} outputs left out …\n" if cut else "")
                self.flush()
                for send in share.items():
                    send()
        self.flush()
        self.shares = {}

    def flush(self) -> None:
        for stream in self.streams.values():
            with suppress(Exception):                      # closed by the notebook
                stream.flush()

    def after_cell(self, result) -> None:
        error, self.error = result.error_before_exec or result.error_in_exec, {}
        if error is not None:
            with suppress(Exception):                      # an odd one: the runner has IPython's own traceback
                self.error = self.told(error)
        self.release()

    def told(self, error: BaseException) -> dict:
        "The line of the cell, and the traceback without framework frames."
        cells = getattr(self.shell.compile, "_filename_map", {})
        top = TracebackException(type(error), error, error.__traceback__, compact=True)
        line = next((f.lineno for f in top.stack if f.filename in cells), None)
        if isinstance(error, SyntaxError) and line is None:
            line = error.lineno
        todo = [top]
        while todo:                                        # it, and what it chains to
            te = todo.pop()
            te.stack[:] = [f for f in te.stack if not f.filename.startswith(self.frameworks)]
            for part in (te, *te.stack):
                if getattr(part, "filename", None) in cells:
                    part.filename = f"cell In[{cells[part.filename]}]"
            todo += filter(None, (te.__cause__, te.__context__, *(getattr(te, "exceptions", None) or ())))
        return {"line": line and int(line), "frames": shorten("".join(top.format()), 100_000)}
