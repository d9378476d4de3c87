"""The mark on a cell's first line, and what somebody may have meant as one."""
import ast
import re

from common import MARKS, cell_mark

UNPARSABLE = SyntaxError, ValueError, RecursionError, MemoryError, OverflowError    # what Python raises on odd source

_first_line = re.compile(r"(?:[^\S\n]*\n)*([^\n]*)\n?")
_mark_line = re.compile(rf"^[^\S\n]*#[^\S\n]*\|?[^\S\n]*({'|'.join(MARKS)})[^\S\n]*$", re.I | re.M)
_comment = re.compile(r"\s*#([\s|#!%:]*)(\w+)(.*)")
_misspelt = re.compile(r"(?=\w*e)(?=\w*x)(?=\w*p)(?=\w*t)\w+", re.I)
_sentence = re.compile(r"(\s+[\w'-]+[,.]?){3}")


def split_mark(src: str) -> tuple[str, str] | None:
    "The source of an exported cell up to and including its mark line, and the rest; `None` for any other cell."
    m = next(_first_line.finditer(src))
    if cell_mark(m[1]) != "export" or len(m[1].splitlines()) > 1:
        return None
    return src[:m.end()], src[m.end():]


def near_miss(kind: str, src: str) -> str | None:
    "Where and what somebody may have meant as a mark that is none, or `None`."
    first = next(_first_line.finditer(src))                # it fits any text
    for m in _mark_line.finditer(src, first.end()) if kind == "code" and "#" in src else ():
        if not parses(src[:m.start()] + "$" + src[m.end():]):          # if it does, the mark is words in a string
            line = src.count("\n", 0, m.start()) + 1
            return f", line {line}: the mark #{m[1].lower()} counts only on the first line, and one a cell"
    if not (m := _comment.match(first[1])):
        return None
    sign, word, rest = m[1], m[2].lower(), m[3]
    no_heading = not sign or "|" in sign                   # `#export`, `#| export`
    if kind != "code":
        return ": #export in a cell that is not code" if word == "export" and no_heading else None
    if cell_mark(first[1]) and len(first[1].splitlines()) == 1:
        return None
    if word in MARKS:
        meant = word if no_heading or not _sentence.match(rest) else ""
    else:
        alone = not re.search(r"\w", rest) or "|" in sign and word.startswith("export")
        meant = "export" if alone and _misspelt.fullmatch(word) else ""
    return f": {first[1].strip()[:60]!r} is no mark: is #{meant} meant?" if meant else None


def parses(src: str) -> bool:
    "Is it Python?"
    try:
        ast.parse(src)
        return True
    except UNPARSABLE:
        return False
