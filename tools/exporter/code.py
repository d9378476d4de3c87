"""The code of a notebook's exported cells: it compiles, imports what it may, and binds the names that are exported."""
import ast
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from common import order

from .notebook import UNPARSABLE, Cell, Notebook, Use, cell_name, id_of, lf

walk: Callable[[ast.AST], Iterator[Any]] = ast.walk         # what it finds differs in its attributes
LINES = 60                                                 # of an exported cell; more get a warning


def check(nb: Notebook, package: str) -> None:
    "Parses the cells, notes what is wrong with them, and what they import and bind."
    own = f"\n# %% {nb.name} "
    for c in nb.cells:
        if (n := len(c.body.splitlines())) > LINES:
            nb.warn(f"{cell_name(c.number, c.id)}: {n} lines in an exported cell, more than a screen ({LINES})")
        if own in (body := "\n" + c.body):
            nb.fault("this line looks like the exporter's own", c, body[:body.index(own)].count("\n") + 1)
    if compile_cells(nb):
        check_imports(nb, package)
        bind(nb)


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
            try:
                compile(c.body, "cell", "exec", dont_inherit=True)
            except UNPARSABLE as error:
                lines = c.body.split("\n")
                line = min(getattr(error, "lineno", None) or 1, len(lines))
                cause = getattr(error, "msg", None) or str(error) or type(error).__name__
                nb.fault(f"syntax error: {cause}: {lines[line - 1].strip()[:60]!r}", c, line)
        if not nb.faults:
            nb.fault(f"its exported cells compile alone, but not together: {getattr(e, 'msg', e)}")
        return False


def check_imports(nb: Notebook, package: str) -> None:
    "A chapter imports only from chapters before it, and nothing private."
    for c in [*nb.cells, *plain_cells(nb, f"{package}.nb")]:
        nodes = walk(c.tree) if "import" in c.body else ()
        nb.uses += [Use(*what, c, node.lineno) for node in nodes for what in imported(node, package)]
    for number, name, c, line in nb.uses:
        if not c.head:                                     # a cell that is not exported may try what it likes
            continue
        if order(number) >= order(nb.chapter):
            what = "of the chapter itself" if number == nb.chapter else "of a later chapter"
            nb.fault(f"import {what}: {package}.nb{number} in chapter {nb.chapter}", c, line)
        elif name.startswith("_") and not name.endswith("__"):
            nb.fault(f"import of a private name: {name} of chapter {number} in chapter {nb.chapter}: "
                     f"make it public there, or do without it", c, line)


def plain_cells(nb: Notebook, text: str) -> Iterator[Cell]:
    "The code cells that are not exported, are Python, and hold `text`."
    exported = {c.number for c in nb.cells}
    for n, c in enumerate(nb.data.get("cells", ()), 1):
        if c["cell_type"] == "code" and n not in exported and text in (src := lf("".join(c["source"]))):
            cell = Cell(n, id_of(c), "", src)
            with suppress(*UNPARSABLE):
                cell.tree = ast.parse(src)
                yield cell


def forgotten(notebooks: list[Notebook]) -> None:
    "Names what a chapter imports from another one that defines it, but in a cell without #export."
    known = {nb.chapter: nb for nb in notebooks}
    for nb in notebooks:
        for number, name, c, line in nb.uses:
            if not name or number not in known or {name, "*"} & known[number].bound.keys():
                continue
            if there := [d for d in plain_cells(known[number], name) if name in dict(bindings(d.tree))]:
                cause = f"import of {name}, which chapter {number} does not export: " \
                        f"is #export missing in its {cell_name(there[-1].number, there[-1].id)}?"
                (nb.fault if c.head else nb.warn)(cause, c, line)


def imported(node: ast.AST, package: str) -> list[tuple[str, str]]:
    "The chapters whose modules an import statement names, each with the name it takes from there (or with none)."
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level < 2:
        base = ".".join(filter(None, [package if node.level else "", node.module]))
        names = [f"{base}.{a.name}" for a in node.names]
    else:
        return []
    found = (re.match(rf"{re.escape(package)}\.nb([0-9]{{2,9}}[a-z]?)(?:\.(?:(\w+)|\*)|$)", name) for name in names)
    return [(m[1], m[2] or "") for m in found if m]


def bind(nb: Notebook) -> None:
    "Notes what the exported cells bind for good; an `__all__` by hand is a fault."
    for c in nb.cells:
        for node in walk(c.tree) if "__all__" in c.body else ():
            if changes_all(node):
                nb.fault("`__all__` is computed: leave it out", c, node.lineno)
        for name, how in bindings(c.tree):
            if not how:
                nb.bound.pop(name, None)
            elif how == "own" or name not in nb.bound:
                nb.bound[name] = how


def changes_all(node: ast.AST) -> bool:
    "Does it assign, delete, import or define `__all__`, change its items or use its methods? (Reading it is harmless.)"
    if isinstance(node, ast.Name):
        return node.id == "__all__" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Attribute) or isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return isinstance(node.value, ast.Name) and node.value.id == "__all__"
    if isinstance(node, ast.alias):
        return (node.asname or node.name) == "__all__"
    return getattr(node, "name", None) == "__all__"        # of a function, class, caught exception, pattern


def bindings(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Each name that code binds where it stands, in order: "own", or "import"ed, or "" for one that `del` unbinds.

    A `@patch`ed function binds no name, and what `if __name__ == "__main__":` or `if TYPE_CHECKING:` hold does not run
    on import. Functions, classes and comprehensions have names of their own, but for a comprehension's `:=`.
    """
    for n in ast.iter_child_nodes(node):
        match n:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                marks = {d.func if isinstance(d, ast.Call) else d for d in n.decorator_list}
                if not {getattr(d, "attr", getattr(d, "id", "")) for d in marks} & {"patch", "patch_to",
                                                                                    "patch_property"}:
                    yield n.name, "own"
                outside: list[Any] = [c for c in ast.iter_child_nodes(n) if not isinstance(c, ast.stmt)]
                yield from bindings(ast.Module(outside, []))       # defaults, decorators, bases: they may hold a `:=`
            case ast.Lambda() | ast.AnnAssign(value=None):     # `x: int` alone binds nothing
                pass
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                yield from ((x.target.id, "own") for x in walk(n) if isinstance(x, ast.NamedExpr))
            case ast.alias(name=name, asname=asname):
                yield asname or name.split(".")[0], "import"
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name, "own" if isinstance(n.ctx, ast.Store) else ""
            case ast.If() if {x.id for x in walk(n.test) if isinstance(x, ast.Name)} & {"__name__", "TYPE_CHECKING"}:
                yield from bindings(ast.Module(n.orelse, []))
            case _:
                yield from bindings(n)
                if isinstance(n, (ast.MatchAs, ast.MatchStar, ast.MatchMapping)):
                    yield from ((name, "own") for k in ("name", "rest") if (name := getattr(n, k, None)))
