"""In the kernel's process: its messages on their way to the runner, held to a size, and told where an error happened.

A cell may print forever, and nobody should hold all of it: the first and the last part of each stream go out, and so do
the first and the last displays.
"""
import re
import threading
import traceback
from collections import deque
from contextlib import suppress
from functools import partial

from runner.text import shorten

ROOM = 200_000                                             # characters of a cell's stream: so many first, so many last
RICH, COUNT = 20_000_000, 200                              # the same of its displays, and how many


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


class Messages:
    "Every message of the kernel passes here; `after_cell` is called when a cell has run."

    def __init__(self, shell, stdout, stderr):
        self.shell, self.streams = shell, {"stdout": stdout, "stderr": stderr}
        self.lock, self.error = threading.Lock(), {}
        self.shares: dict[str, Share] | None = {}          # None: all may pass

    def passing(self, send):
        "`Session.send`, by way of this object."
        def passing(session, stream, msg_or_type, content=None, *args, **kw):
            again = partial(send, session, stream, msg_or_type, content, *args, **kw)
            with suppress(Exception):                      # never the notebook's problem
                kind, body = msg_or_type, content
                if not isinstance(msg_or_type, str):
                    kind, body = msg_or_type["header"]["msg_type"], msg_or_type["content"]
                if kind == "error":
                    self.release()
                elif kind == "execute_reply":
                    body |= self.error
                if "traceback" in body:
                    body["evalue"] = shorten(body["evalue"], 100_000)
                    body["traceback"] = [shorten(t, 100_000) for t in body["traceback"]]
                with self.lock:
                    if self.held_back(kind, body, again):
                        return None
            return again()
        return passing

    def held_back(self, kind: str, body: dict, again) -> bool:
        "Whether a message need not be sent now; `again` sends it. What is too big of it is cut."
        if self.shares is None or kind not in ("stream", "display_data", "execute_result", "clear_output"):
            return False
        if kind == "clear_output":
            self.shares.clear()
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
            kept = [item for item, _ in share.kept]
            if name in self.streams:
                tail = "".join(kept)[-ROOM:]
                cut = share.total - len(tail)
                self.streams[name].write((f"\n… {cut:,} characters left out …\n" if cut else "") + tail)
            elif kept:
                cut = share.total - len(kept)
                self.streams["stdout"].write(f"… {cut:,} outputs left out …\n" if cut else "")
                self.flush()
                for send in kept:
                    send()
        self.flush()
        self.shares = {}

    def flush(self) -> None:
        for stream in self.streams.values():
            with suppress(Exception):                      # closed by the notebook
                stream.flush()

    def after_cell(self, result) -> None:
        error, self.error = result.error_before_exec or result.error_in_exec, {}
        with suppress(Exception):                          # an odd one: the runner has IPython's own traceback
            self.error = self.told(error) if error is not None else {}
        self.release()

    def told(self, error: BaseException) -> dict:
        "The line of the cell, and Python's own traceback."
        cells = getattr(self.shell.compile, "_filename_map", {})
        lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename in cells]
        if not lines and isinstance(error, SyntaxError):
            lines = [error.lineno]
        text = re.sub(r'(?<=File ")[^"\n]+', lambda m: f"cell In[{cells[m[0]]}]" if m[0] in cells else m[0],
                      "".join(traceback.format_exception(error)))
        return {"line": int(lines[0]) if lines else None, "frames": shorten(text, 100_000)}
