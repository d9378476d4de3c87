"""The mark on a cell's first line, and what somebody may have meant as one."""
import ast
import re

from common import MARKS, cell_mark

UNPARSABLE = SyntaxError, ValueError, RecursionError, MemoryError, OverflowError    # what Python raises on odd source

_first_line = re.compile(r"(?:[^\S\n]*\n)*([^\n]*)\n?")
_mark_line = re.compile(rf"^[^\S\n]*#[^\S\n]*\|?[^\S\n]*({'|'.join(MARKS)})[^\S\n]*$", re.I | re.M)
_like_a_mark = re.compile(r"""
    \s*\# (?: \s*\|[\s|]* )? (?: (slow|cuda)\b | export )                   # `#| export and show`, `#slow, an hour`
    | \s*\#[\s\#!%:]+ (?: (slow|cuda) | export )\b (?! (?: \s+[\w'-]+[,.]? ){3} )         # no sentence: `# export it`
    | \s*\#[\s\#!%:]* (?=\w*e)(?=\w*x)(?=\w*p)(?=\w*t) \w+\W*$            # `#exprot`
    """, re.I | re.X)


def split_mark(src: str) -> tuple[str, str] | None:
    "The source of an exported cell up to and including its mark line, and the rest; `None` for any other cell."
    m = next(_first_line.finditer(src))
    if cell_mark(m[1]) != "export" or len(m[1].splitlines()) > 1:
        return None
    return src[:m.end()], src[m.end():]


def near_miss(kind: str, src: str) -> str | None:
    "Where and what somebody may have meant as a mark that is none, or `None`."
    first = next(_first_line.finditer(src))                # it fits any text
    if kind != "code":                                     # where `# Export` is a heading
        meant = re.match(r"\s*#(\s*\|\s*)?export\b", first[1], re.I)
        return ": #export in a cell that is not code" if meant else None
    for m in _mark_line.finditer(src, first.end()) if "#" in src else ():
        if not parses(src[:m.start()] + "$" + src[m.end():]):          # if it does, the mark is words in a string
            line = src.count("\n", 0, m.start()) + 1
            return f", line {line}: the mark #{m[1].lower()} counts only on the first line, and one a cell"
    m = _like_a_mark.match(first[1])
    if not m or cell_mark(first[1]) and len(first[1].splitlines()) == 1:
        return None
    return f": {first[1].strip()[:60]!r} is no mark: is #{(m[1] or m[2] or 'export').lower()} meant?"


def parses(src: str) -> bool:
    "Is it Python?"
    try:
        ast.parse(src)
        return True
    except UNPARSABLE:
        return False
