'''The builder's door: a package that knows every exported name in its last version, and loads it when it is first used.

Two files, both generated: `__init__.py` for Python, and the stub `__init__.pyi` for editors and type checkers, which
cannot see what `__getattr__` would find.
'''
import re
from pathlib import Path

from common import order

from .module import header, sealed
from .notebook import Notebook
from .project import Project

CODE = '''
__all__ = list(_module_of)


def __getattr__(name):
    "Called for what is not here yet: a name is taken from its chapter's module, and stays here."
    if name in _module_of:
        import sys
        value = globals()[name] = getattr(_load(_module_of[name]), name)
        for patched, modules in _patches.items():          # later chapters give its classes more methods
            if f"EXP.{patched}" in sys.modules:
                for module in modules:
                    _load(module)
        return value
    if name == "__version__":
        from importlib import metadata
        try:
            return metadata.version(__name__)
        except metadata.PackageNotFoundError:              # a checkout on the path, not installed
            return "0+unknown"
    from difflib import get_close_matches
    close = [f": did you mean {near!r}?" for near in get_close_matches(name, __all__, 1)]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{''.join(close)}", name=name)


def __dir__():
    return sorted({*globals(), *__all__, "__version__"})


def _load(module):
    "The module of a chapter. Another EXP that comes first on Python's path would hide it: that one is named."
    import importlib.util
    from pathlib import Path
    ours = Path(__file__).resolve().parent.with_name("EXP")
    spec = importlib.util.find_spec("EXP")
    found = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))) if spec else ours
    if found.resolve() not in (ours, ours / "__init__.py"):
        raise ImportError(f"{found} hides the package {ours}, which {__name__} needs: rename it, or start Python "
                          "where it is not", name="EXP", path=str(found))
    return importlib.import_module(f"EXP.{module}")
'''


def files(project: Project, notebooks: list[Notebook]) -> dict[Path, str]:
    "The texts of the door's files, of none where the project has no door."
    if not project.door:
        return {}
    lib, lines, stub = project.lib.name, ["_module_of = {"], ["__version__: str"]
    for nb, names in last_versions(project, notebooks):
        lines += [f"    # {nb.title}", *(f'    "{name}": "nb{nb.chapter}",' for name in names)]
        stub += ["", f"# {nb.title}", *(f"from {lib}.nb{nb.chapter} import {name} as {name}" for name in names)]
    head = header("Every name of the chapters in its last version, loaded when it is first used.",
                  f"{project.name(project.nbs)}/*.ipynb", "change the notebook and export.")
    code = [*lines, "}", f"_patches = {patches(notebooks)!r}", CODE.replace("EXP", lib)]
    return {project.door / name: sealed("\n".join([head, *text]))
            for name, text in [("__init__.py", code), ("__init__.pyi", [*stub, ""])]}


def patches(notebooks: list[Notebook]) -> dict[str, list[str]]:
    "For each module with classes that later chapters give methods (`@patch_to`), the modules that do."
    found = {}
    for nb in notebooks:
        classes = {cls for c in nb.cells for cls in re.findall(r"^@patch_to\((\w+)\)", c.body, re.M)}
        for chapter in sorted({use.chapter for use in nb.uses if use.cell.head and use.name in classes}):
            found.setdefault(f"nb{chapter}", []).append(f"nb{nb.chapter}")
    return found


def last_versions(project: Project, notebooks: list[Notebook]) -> list[tuple[Notebook, list[str]]]:
    """The chapters, each with its exported names that no later one exports too.

    An outgrown chapter's name counts only if the chapter that outgrew it, or one after that, imports it from there.
    """
    by = project.outgrown_by
    needed = {use[:2] for nb in notebooks if by and order(nb.chapter) >= order(by) for use in nb.uses if use.cell.head}
    last = {}
    for nb in notebooks:
        last |= {name: nb.chapter for name in nb.names
                 if nb.chapter not in project.outgrown or (nb.chapter, name) in needed}
    behind = [(nb, [name for name in nb.names if last.get(name) == nb.chapter]) for nb in notebooks]
    return [(nb, names) for nb, names in behind if names]
