"""In the kernel's process: its messages on their way to the runner, held to a size, and what was shown as an error.

A cell may print forever, and nobody should hold all of it: the first and the last part of each stream go out, and so do
the first and the last displays. An error may be shown without being raised, by a magic, a display, a widget: the reply
to each cell says which was shown last, with its line and traceback.
"""
import re
import sys
import threading
import traceback
from collections import Counter, deque
from contextlib import suppress
from functools import partial

from runner.text import shorten

ROOM = 200_000                                             # characters of a cell's stream: so many first, so many last
RICH, COUNT = 40_000_000, 200                              # the same of its displays, and how many
BIG, BIG_LATE = 20_000_000, 1_000_000                      # characters of one display: while there is room, and later


class Messages:
    "Every message of the kernel passes here; `after_cell` is called when a cell has run."

    def __init__(self, shell, stdout, stderr):
        self.shell, self.streams = shell, {"stdout": stdout, "stderr": stderr}
        self.lock, self.limited = threading.Lock(), True
        self.count = 0                                     # the kernel's number of the running cell
        self.shown: list[dict] = []                        # errors, since the last reply
        self.clear()

    def clear(self) -> None:
        "Nothing is shown yet: there is room, and nothing is kept for the end."
        self.room, self.tails = {"stdout": ROOM, "stderr": ROOM, "displays": RICH}, {"stdout": "", "stderr": ""}
        self.last, self.kept = deque(maxlen=COUNT), Counter()

    def passing(self, send):
        "`Session.send`, by way of this object."
        def passing(session, stream, msg_or_type, content=None, *args, **kw):
            again = partial(send, session, stream, msg_or_type, content, *args, **kw)
            with suppress(Exception):                      # never the notebook's problem
                kind, body = msg_or_type, content or {}
                if not isinstance(msg_or_type, str):
                    kind, body = msg_or_type["header"]["msg_type"], msg_or_type["content"]
                if "traceback" in body:
                    body["evalue"] = shorten(body["evalue"], 100_000)
                    body["traceback"] = [shorten(t, 100_000) for t in body["traceback"]]
                if kind == "execute_input":
                    self.count = body["execution_count"]
                elif kind == "error":
                    self.shown.append(body | {"ename": body["ename"] + ""})        # of a type that it may have
                    self.release()
                elif kind == "execute_reply" and self.shown:
                    body["shown"] = self.shown.pop()
                    self.shown.clear()
                with self.lock:
                    if self.limited and self.held_back(kind, body, again):
                        return None
            return again()
        return passing

    def held_back(self, kind: str, body: dict, again) -> bool:
        "Whether a message need not be sent now; `again` sends it. What is too big of it is cut."
        if kind == "clear_output":
            self.clear()
        elif kind == "stream":
            name, text = body["name"], body["text"]
            body["text"], rest = text[:self.room[name]], text[self.room[name]:]
            self.room[name] -= len(body["text"])
            self.tails[name] = (self.tails[name] + rest)[-ROOM:]
            self.kept[name] += len(rest)
            return not body["text"]
        elif kind in ("display_data", "execute_result"):
            size = sum(len(v) for v in body["data"].values() if isinstance(v, str))
            if size > (BIG if self.room["displays"] > 0 else BIG_LATE):
                body["data"].clear()
                body["data"]["text/plain"] = f"… an output of {size:,} characters left out …"
            if self.room["displays"] <= 0:
                self.last.append(again)
                self.kept["displays"] += 1
                return True
            self.room["displays"] -= max(size, RICH // COUNT)
        return False

    def release(self) -> None:
        "Send what was kept for the end."
        self.say({})
        with self.lock:
            self.limited, texts, last, kept = False, self.tails, self.last, self.kept
        for name, tail in texts.items():
            cut = kept[name] - len(tail)
            texts[name] = (f"\n… {cut:,} characters left out …\n" if cut else "") + tail
        if cut := kept["displays"] - len(last):
            texts["stdout"] += f"… {cut:,} outputs left out …\n"
        if any(texts.values()):
            self.say(texts)
        for send in last:
            send()
        self.clear()
        self.limited = True

    def say(self, texts: dict[str, str]) -> None:
        "Write to the streams, and see that and what was in them on its way."
        for name, stream in self.streams.items():
            with suppress(Exception):                      # closed by the notebook
                stream.write(texts.get(name, ""))
                stream.flush()

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
        self.release()

    def tell(self, error: BaseException, new: bool) -> None:
        "Add to the error shown last, or to a new one, its line in a cell and Python's own traceback of it."
        if new:
            self.shown.append({"ename": type(error).__name__, "evalue": shorten(str(error), 100_000)})
        cells = getattr(self.shell.compile, "_filename_map", {})       # code that a cell runs as one has a later number
        places = [(frame.f_code.co_filename, n) for frame, n in traceback.walk_tb(error.__traceback__)]
        places += [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
        lines = [n for file, n in places if cells.get(file, self.count + 1) <= self.count]
        text = re.sub(r'(?<=File ")[^"\n]+', lambda m: f"cell In[{cells[m[0]]}]" if m[0] in cells else m[0],
                      "".join(traceback.format_exception(error)))
        text = re.sub(r"\n +[~^]+(?=\n)(?!\n(Syntax|Indentation|Tab)Error)", "", text)       # these marks vary
        self.shown[-1] |= {"line": int(lines[0] or 0) if lines else 0, "frames": shorten(text, 100_000)}
