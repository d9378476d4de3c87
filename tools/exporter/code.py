"""The code of a notebook's exported cells: it compiles, imports what it may, and binds the names that are exported."""
import ast
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .marks import UNPARSABLE
from .notebook import Notebook, cell_name, order

walk: Callable[[ast.AST], Iterator[Any]] = ast.walk         # what it finds differs in its attributes
LINES = 60                                                 # of an exported cell; more get a warning


def check(nb: Notebook, package: str) -> None:
    "Parses the cells, notes what is wrong with them, and what they import and export."
    own = f"\n# %% {nb.name} "
    for c in nb.cells:
        if (n := len(c.body.splitlines())) > LINES:
            nb.warn(f"{cell_name(c.number, c.id)}: {n} lines in an exported cell, more than a screen ({LINES})")
        if own in (body := "\n" + c.body):
            nb.fault("this line looks like the exporter's own", c, body[:body.index(own)].count("\n") + 1)
    if compile_cells(nb):
        check_imports(nb, package)
        nb.names = public_names(nb)


def compile_cells(nb: Notebook) -> bool:
    "Each cell is parsed by itself, so that no statement runs on into the next; all are compiled as one module."
    try:
        for c in nb.cells:
            c.tree = ast.parse(c.body)
        whole = ast.parse('"the docstring of the module"')
        whole.body += [s for c in nb.cells for s in c.tree.body]
        compile(whole, nb.name, "exec", dont_inherit=True)
        return True
    except UNPARSABLE as e:
        for c in nb.cells:
            if error := cell_error(c.body):
                nb.fault(error[1], c, error[0])
        if not nb.faults:
            nb.fault(f"its exported cells compile alone, but not together: {getattr(e, 'msg', e)}")
        return False


def cell_error(body: str) -> tuple[int, str] | None:
    "The line and cause of the first syntax error in a cell's code by itself, or `None`."
    try:
        compile(body, "cell", "exec", dont_inherit=True)
        return None
    except UNPARSABLE as e:
        lines = body.split("\n")
        line = min(max(getattr(e, "lineno", None) or 1, 1), len(lines))
        cause = f"syntax error: {getattr(e, 'msg', None) or str(e) or type(e).__name__}"
    text = lines[line - 1].strip()
    if m := re.match(r"(?:[\w.,\s]+=\s*)?([%!?])|[\w.*]+(\?)\??$", text):
        what = {"%": "IPython magic", "!": "a shell command", "?": "a help request"}[m[1] or m[2]]
        return line, f"{what} in an exported cell: {text[:60]!r}: a module is plain Python"
    with suppress(*UNPARSABLE):
        compile(body, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        cause = "top-level await in an exported cell: put it into an `async def`"
    return line, cause


# -- imports -----------------------------------------------------------------------------------------------------------

def check_imports(nb: Notebook, package: str) -> None:
    "A chapter imports only from chapters before it, and nothing private."
    for c in nb.cells:
        for node in walk(c.tree) if "import" in c.body else ():
            for number, name in imported(node, package):
                nb.uses.add((number, name))
                if order(number) >= order(nb.chapter):
                    what = "of the chapter itself" if number == nb.chapter else "of a later chapter"
                    nb.fault(f"import {what}: {package}.nb{number} in chapter {nb.chapter}", c, node.lineno)
                elif name.startswith("_") and not name.endswith("__"):
                    nb.fault(f"import of a private name: {name} of chapter {number} in chapter {nb.chapter}: "
                             f"make it public there, or do without it", c, node.lineno)


def imported(node: ast.AST, package: str) -> list[tuple[str, str]]:
    "The chapters whose modules an import statement names, each with the name it takes from there (or with none)."
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level < 2:
        base = ".".join(filter(None, [package if node.level else "", node.module]))
        names = [f"{base}.{a.name}" for a in node.names]
    else:
        return []
    found = (re.match(rf"{re.escape(package)}\.nb([0-9]{{2,}}[a-z]?)(?:\.(\w+)|$)", name) for name in names)
    return [(m[1], m[2] or "") for m in found if m]


# -- names -------------------------------------------------------------------------------------------------------------

DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
ASSIGNS = ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete
BRANCHES = ast.If, ast.Try, ast.TryStar, ast.With


def public_names(nb: Notebook) -> list[str]:
    "What `__all__` holds, in order of definition; an `__all__` by hand is a fault."
    names = {}
    for c in nb.cells:
        for node in walk(c.tree) if "__all__" in c.body else ():
            if changes_all(node):
                nb.fault("`__all__` is computed: leave it out", c, node.lineno)
        for name, bound in bindings(c.tree.body):
            if not bound:
                names.pop(name, None)
            elif not name.startswith("_"):
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


def bindings(body: list[ast.stmt]) -> Iterator[tuple[str, bool]]:
    """Each name that a definition, class or assignment binds, and each that `del` unbinds (then with `False`).

    Goes into `if`, `try` and `with`. A `@patch`ed function binds no name, and what `if __name__ == "__main__":` or
    `if TYPE_CHECKING:` hold does not run on import.
    """
    for s in body:
        if isinstance(s, DEFS):
            marks = {d.func if isinstance(d, ast.Call) else d for d in s.decorator_list}
            if not {getattr(d, "attr", getattr(d, "id", "")) for d in marks} & {"patch", "patch_to", "patch_property"}:
                yield s.name, True
        elif isinstance(s, ASSIGNS) and getattr(s, "value", s):          # `x: int` alone binds nothing
            for n in (n for t in getattr(s, "targets", None) or [getattr(s, "target", s)] for n in walk(t)):
                if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load):
                    yield n.id, not isinstance(s, ast.Delete)
        elif isinstance(s, BRANCHES):
            asks = {n.id for n in ast.walk(s.test) if isinstance(n, ast.Name)} if isinstance(s, ast.If) else set()
            runs = not asks & {"__name__", "TYPE_CHECKING"}
            handlers = [h.body for h in getattr(s, "handlers", [])]
            for part in [s.body if runs else [], *handlers, getattr(s, "orelse", []), getattr(s, "finalbody", [])]:
                yield from bindings(part)
