"""How text is shown: numbers and times in words, on one line, without what a terminal would obey."""
import os
import re
from importlib.util import find_spec

_ansi = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")

MACHINERY = [re.escape(os.path.dirname(getattr(find_spec(name), "origin", name)))
             for name in ("runner", "IPython", "ipykernel")]
_frames = re.compile(rf'^( *)File "(?:{"|".join(MACHINERY)}).*\n?(?:\1 +(?!File ").*\n?)*', re.M)


ROOM = 200_000                                             # characters of a long text: so many first, so many last
CUT = "\n… {} characters left out …\n"
CUT_BEFORE = re.compile(CUT.format(r"([\d,]+)"))


def plain(text: str) -> str:
    "Without terminal codes."
    return _ansi.sub("", text)


def without_frames(text: str) -> str:
    "A traceback without what is not the notebook's: the frames of IPython and of the runner, and the code below them."
    return _frames.sub("", text)


def visible(text: str) -> str:
    "Control characters as their escapes: a report must not ring, clear the screen or go back in its line."
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]", lambda m: ascii(m[0])[1:-1], text)


def shorten(text: str, width: int) -> str:
    "At most `width` characters: what is in the middle is left out."
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:width - 1 - half]}…{text[-half:]}"


def cut(text: str) -> str:
    "The first and the last part of a long text, with how much is left out between them, also at earlier cuts."
    if len(text) <= 2 * ROOM:
        return text
    left = text[ROOM:-ROOM]
    n = len(left) + sum(int(k.replace(",", "")) - len(k) - len(CUT.format("")) for k in CUT_BEFORE.findall(left))
    return text[:ROOM] + CUT.format(f"{n:,}") + text[-ROOM:]


def one_line(text: str, width: int = 200) -> str:
    "The first line that is not blank, shortened."
    return shorten(next((t.strip() for t in text.splitlines() if t.strip()), ""), width)


def clock(seconds: float) -> str:
    "Seconds as people say them."
    if seconds < 60:
        return f"{seconds:.1f} s"
    m, s = divmod(round(seconds), 60)
    return f"{m}:{s:02d} min" if m < 60 else f"{m // 60}:{m % 60:02d} h"
