"""`--update`: edits made in a module go back into its notebook, three ways: module, notebook, and what both were."""
from .module import Module, diff, sha
from .notebook import Notebook, canonical, read


def bring_back(nb: Notebook, mod: Module, name: str) -> bytes | None:
    "Puts the edits made in the module `name` into `nb`; the notebook file's new bytes, `None` if nothing changes."
    if mod.blocks_moved():
        return nb.fault(f"blocks of {name} were added, removed or moved: do that in the notebook, then use --force")
    cells, edits = {c.id: c for c in nb.cells}, {}
    for cell_id, base, code in mod.blocks:
        cell = cells.get(cell_id)
        if sha(code) == base or cell and cell.body == code:
            continue
        if cell and sha(cell.body) == base:
            edits[cell.number] = cell.head + code
            continue
        cause = f"changed in {name} and here too" if cell else f"(id {cell_id}) changed in {name}, but is gone here"
        shown = diff(cell.body if cell else "", code, nb.name, name)
        nb.fault(f"{cause}: settle it in the notebook, then use --force\n{shown}", cell)
    if nb.path.is_symlink() and edits:
        nb.fault("it is a link: nothing is written through it")
    if nb.faults or not edits:
        return None
    for number, source in edits.items():
        nb.data["cells"][number - 1]["source"] = source.splitlines(keepends=True)
    return read(nb, canonical(nb.data))
