"""The module made of a notebook's exported cells: names and imports checked, compiled, written as text, taken apart."""
import ast
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from exporter_notebook import UNPARSABLE, Notebook, lf, order, place

WIDTH = 120                                                # of the lines of a generated `__all__`
SEP = "\n\n\n"                                             # stands between the blocks of a module


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def build(nb: Notebook, package: str) -> str | None:
    "The text of the module of `nb`; `None` when it has none, or has faults."
    blocks, line = [], 2
    for c in nb.cells:
        c.start, line = line, line + c.body.count("\n") + 1 + len(SEP)
        blocks.append(f"# %% {nb.name} #{c.id} ({sha(c.body)})\n{c.body}")
        if m := re.search(rf"^# %% {re.escape(nb.name)} ", c.body, re.M):
            nb.fault("this line looks like the exporter's own", c, c.body.count("\n", 0, m.start()) + 1)
    code = SEP.join(blocks) + "\n"
    tree = compiled(nb, code) if nb.cells else None
    if tree is None:
        return None
    check_imports(nb, tree, package)
    names = public_names(nb, tree)
    return None if nb.faults else render(nb, code, names, is_future(tree.body[0]) if tree.body else False)


def compiled(nb: Notebook, code: str) -> ast.Module | None:
    "The syntax tree of a module's blocks, once it has compiled; `None` and the cells' faults where it does not."
    try:
        tree = ast.parse(code)
        for s in tree.body:
            if nb.at(first_line(s))[0] is not nb.at(s.end_lineno)[0]:
                raise SyntaxError("a statement that runs on into the next exported cell", ("", first_line(s), 0, ""))
        if not (late := late_futures(tree.body)):
            compile(tree, nb.name, "exec", dont_inherit=True)
            return tree
        for s in late:
            nb.fault("`from __future__` must come first in the first exported cell", *nb.at(s.lineno))
    except UNPARSABLE as e:
        found = [(cell, error) for cell in nb.cells if (error := cell_error(cell.body))]
        for cell, (line, cause) in found:
            nb.fault(cause, cell, line)
        if not found:                                      # each cell is sound, together they are not
            nb.fault(f"syntax error: {getattr(e, 'msg', e)}", *nb.at(getattr(e, "lineno", None) or 2))
    return None


def first_line(stmt: ast.stmt) -> int:
    return min([stmt.lineno, *(d.lineno for d in getattr(stmt, "decorator_list", []))])


def is_future(stmt: ast.stmt) -> bool:
    return isinstance(stmt, ast.ImportFrom) and stmt.module == "__future__" and not stmt.level


def late_futures(body: list[ast.stmt]) -> list[ast.stmt]:
    "The `from __future__` imports with another statement before them."
    start = next((i for i, s in enumerate(body) if not is_future(s)), len(body))
    return [s for s in body[start:] if is_future(s)]


def cell_error(body: str) -> tuple[int, str] | None:
    "The line and cause of the first syntax error in a cell's code by itself, or `None`."
    try:
        compile(body, "cell", "exec", dont_inherit=True)
        return None
    except UNPARSABLE as e:
        lines = body.split("\n")
        line = min(max(getattr(e, "lineno", None) or 1, 1), len(lines))
        cause = f"syntax error: {getattr(e, 'msg', None) or str(e) or type(e).__name__}"
    start = next(i for i, text in enumerate(lines, 1) if text.strip())
    line = start if lines[start - 1].lstrip().startswith("%%") else line
    text = lines[line - 1].strip()
    if m := re.match(r"(?:[\w.,\s]+=\s*)?([%!?])|[\w.*]+(\?)\??$", text):
        what = {"%": "IPython magic", "!": "a shell command", "?": "a help request"}[m[1] or m[2]]
        return line, f"{what} in an exported cell: {text[:60]!r}: a module is plain Python"
    with suppress(*UNPARSABLE):
        compile(body, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        cause = "top-level await in an exported cell: put it into an `async def`"
    return line, cause


def check_imports(nb: Notebook, tree: ast.Module, package: str) -> None:
    "A chapter imports only chapters before it."
    for node in sorted(statements(tree), key=lambda s: s.lineno):
        for module in imported(node, package):
            m = re.fullmatch(r"nb([0-9]{2,}[a-z]?)", module)
            if m and order(m[1]) >= order(nb.chapter):
                what = "of the chapter itself" if m[1] == nb.chapter else "of a later chapter"
                nb.fault(f"import {what}: {package}.{module} in chapter {nb.chapter}", *nb.at(node.lineno))


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    "Every statement, at any depth. (`ast.walk` looks into expressions too, and takes ten times as long.)"
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.stmt):
            yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            stack += getattr(node, part, [])


def imported(node: ast.AST, package: str) -> list[str]:
    "The modules of `package` that an import statement names."
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level < 2:
        base = ".".join(filter(None, [package if node.level else "", node.module]))
        names = [f"{base}.{a.name}" for a in node.names]
    else:
        return []
    return sorted({p[1] for p in (n.split(".") for n in names) if len(p) > 1 and p[0] == package})


# -- names -------------------------------------------------------------------------------------------------------------

DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
ASSIGNS = ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete
BRANCHES = ast.If, ast.Try, ast.With, getattr(ast, "TryStar", ast.Try)


def public_names(nb: Notebook, tree: ast.Module) -> list[str]:
    "What `__all__` holds, in order of definition; a name defined twice, or an `__all__` by hand, is a fault."
    names, first = {}, {}
    for node in ast.walk(tree) if any("__all__" in c.body for c in nb.cells) else ():
        if changes_all(node):
            nb.fault("`__all__` is computed: leave it out", *nb.at(node.lineno))
    for name, stmt, always in bindings(tree.body):
        if isinstance(stmt, ast.Delete):
            names.pop(name, None)
            first.pop(name, None)
            continue
        if always and name in first and name != "_" and name not in read_by(stmt):
            nb.fault(f"`{name}` is defined twice, first in {place(*nb.at(first[name]))}", *nb.at(stmt.lineno))
        if always:
            first.setdefault(name, stmt.lineno)
        if not name.startswith("_"):
            names[name] = None
    return list(names)


def changes_all(node: ast.AST) -> bool:
    "Does it assign, delete, import or define `__all__`, change its items or use its methods? (Reading it is harmless.)"
    if isinstance(node, ast.Name):
        return node.id == "__all__" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Attribute) or isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return isinstance(node.value, ast.Name) and node.value.id == "__all__"
    if isinstance(node, ast.alias):
        return (node.asname or node.name) == "__all__"
    return getattr(node, "name", None) == "__all__"        # of a function, class, caught exception, pattern


def bindings(body: list[ast.stmt], always: bool = True) -> Iterator[tuple[str, ast.stmt, bool]]:
    """Each name a definition, class or assignment binds (or `del` unbinds), the statement, and whether it always runs.

    Goes into `if`, `try` and `with`. A `@patch`ed function binds no name, an `@overload` precedes the one that does,
    and what `if __name__ == "__main__":` or `if TYPE_CHECKING:` hold does not run on import.
    """
    for s in body:
        if isinstance(s, DEFS):
            marks = {d.func if isinstance(d, ast.Call) else d for d in s.decorator_list}
            marks = {getattr(d, "attr", getattr(d, "id", "")) for d in marks}
            if not marks & {"patch", "patch_to", "patch_property"}:
                yield s.name, s, always and "overload" not in marks
        elif isinstance(s, ASSIGNS) and getattr(s, "value", s):          # `x: int` alone binds nothing
            for t in getattr(s, "targets", None) or [s.target]:
                yield from ((n.id, s, always) for n in ast.walk(t)
                            if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load))
        elif isinstance(s, BRANCHES):
            runs = not isinstance(s, ast.If) or not names_in(s.test) & {"__name__", "TYPE_CHECKING"}
            handlers = [h.body for h in getattr(s, "handlers", [])]
            for part in [s.body if runs else [], *handlers, getattr(s, "orelse", []), getattr(s, "finalbody", [])]:
                yield from bindings(part, always and isinstance(s, ast.With))
        elif type(s).__name__ == "TypeAlias":
            yield s.name.id, s, always


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def read_by(stmt: ast.stmt) -> set[str]:
    "The names a statement reads as it binds: a class may extend, a decorator or a value use, what it replaces."
    parts = [*getattr(stmt, "decorator_list", []), *getattr(stmt, "bases", []), getattr(stmt, "value", None)]
    parts += [stmt.target] if isinstance(stmt, ast.AugAssign) else []
    return {name for p in parts if p for name in names_in(p)}


# -- the text, made and taken apart ------------------------------------------------------------------------------------

_origin = re.compile(r"^# Generated by tools/notebook2script\.py from (.+\.ipynb)\. Do not edit:$", re.M)
_digest = re.compile(r"(?<=Digest )[0-9a-f]{8}-[0-9a-f]{8}(?=\.$)", re.M)
_block = r"^# %% {} (?:#([\w-]+) \(([0-9a-f]{{8}})\)|end)\n"


class Module(NamedTuple):
    "A generated module taken apart: `blocks` are `(cell id, digest, code)`, `frame` is what surrounds them."
    frame: str
    digest: str
    blocks: list[tuple[str, str, str]]

    def digests(self) -> str:
        "What `digest` should be: that of the frame, and that of the list of blocks."
        return f"{sha(self.frame)}-{sha(' '.join(f'{id} {digest}' for id, digest, _ in self.blocks))}"

    def frame_edited(self) -> bool:
        return self.digest[:8] != self.digests()[:8]

    def blocks_moved(self) -> bool:
        return self.digest[8:] != self.digests()[8:]

    def edited(self) -> bool:
        return self.digest != self.digests() or any(sha(code) != digest for _, digest, code in self.blocks)


def render(nb: Notebook, code: str, names: list[str], future: bool) -> str:
    "The module: what it is, `__all__` (at the end if a `from __future__` has to come first), and the blocks."
    title = ", ".join(filter(None, [f"Chapter {nb.chapter}", " ".join(nb.path.stem.split("_")[1:])]))
    head = (f'"""{title}: its code. The story and the tests are in the notebook."""\n'
            f"# Generated by tools/notebook2script.py from {nb.name}. Do not edit:\n"
            f"# change the notebook and export, or bring edits back with --update. Digest 00000000-00000000.\n")
    text = f"{head}\n{dunder_all(names)}{SEP[1:]}{code}"
    if future:
        text = f"{head}{SEP[1:]}{code}{SEP[1:]}# %% {nb.name} end\n{dunder_all(names)}"
    return _digest.sub(taken_apart(text).digests(), text, count=1)


def dunder_all(names: list[str]) -> str:
    "The `__all__` statement, in lines no longer than `WIDTH`."
    import textwrap
    items = ", ".join(f'"{name}"' for name in names)
    return textwrap.fill(items, WIDTH - 1, initial_indent="__all__ = [", subsequent_indent=" " * 11,
                         break_long_words=False, break_on_hyphens=False) + "]\n" if names else "__all__ = []\n"


def taken_apart(text: str) -> Module | None:
    "The parts of a generated module; `None` when this tool did not write the text."
    origin, digest = _origin.search(text[:1000]), _digest.search(text[:1000])
    if not origin or not digest:
        return None
    parts = re.split(_block.format(re.escape(origin[1])), text, flags=re.M)
    frame, blocks = _digest.sub("", parts[0], count=1), []
    for i in range(1, len(parts), 3):
        cell_id, sum_, code = parts[i:i + 3]
        if cell_id is None:
            frame += code
            continue
        for _ in range(1 if i + 3 == len(parts) else len(SEP)):
            code = code.removesuffix("\n")
        blocks.append((cell_id, sum_, code))
    return Module(frame, digest[0], blocks)


def module_in(raw: bytes | None) -> Module | None:
    "The generated module that a file holds; `None` when this tool did not write it."
    try:
        return taken_apart(lf((raw or b"").decode("utf-8-sig")))
    except UnicodeDecodeError:
        return None
