"""Builds the book: `make book`, or `python docs/book/build.py [FOLDER]`. The pages are the committed notebooks.

Into `_out/book-src/` go the notebooks as they are, the documents of docs/, the first page, and a reference that is
made from the docstrings of exp/; Sphinx makes `_out/book/` from it. Nothing is executed, warnings are errors.
"""
import ast
import inspect
import json
import os
import re
import shutil
import sys
import time
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
cfg = ConfigParser()
cfg.read(ROOT / "settings.ini", encoding="utf-8")
settings = cfg["DEFAULT"]
OUT = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / settings["out_path"]
SRC, BOOK = OUT / "book-src", OUT / "book"

PARTS = {"00": "The workshop", "01": "Foundations", "04": "Callbacks", "06": "Seeing inside", "08": "The library",
         "11": "Faster and deeper", "15": "Records and scale"}
THEMES = {                                                 # of the reference: the chapters whose names belong to it
    "Data and loaders": "00b 00c 02 03 08 12c",
    "Layers, models, initialisation": "02a 06 07 07a 07b 08a 11 13 13c",
    "Training": "09 09a 09b 14 14b 14c 15",
    "Optimisers and schedules": "12 12a 12b",
    "Looking inside": "10 13a",
    "Saving, going on, using": "13b 14a",
    "Scale": "16",
    "Autoencoders": "17",
    "Reports and commands": "17a 18",
    "The workshop: tests, files, state, tables": "00 00a 01",
}
DOCUMENTS = {"docs/use_it.md": "use_it", "docs/reliability.md": "reliability", "docs/scale.md": "scale",
             "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


def chapters() -> dict[str, Path]:
    "Number of each chapter -> its notebook, in order."
    return {p.stem.split("_")[0]: p for p in sorted((ROOT / settings["nbs_path"]).glob("[0-9]*.ipynb"))}


def title(notebook: Path) -> str:
    first = next(c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "markdown")
    return re.search(r"^# (.+)$", "".join(first["source"]), re.M)[1]


# -- the reference

DEFINED = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def definitions(number: str) -> dict[str, tuple[ast.AST, str]]:
    "Top-level names of a chapter's module -> their definition and the id of their cell."
    path = ROOT / settings["lib_path"] / f"nb{number}.py"  # a chapter that exports nothing has none
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    cells = [(text.count("\n", 0, m.start()) + 1, m[1]) for m in re.finditer(r"^# %% \S+ #([\w-]+) \(", text, re.M)]
    found = {}
    for node in ast.parse(text).body:
        cell = next((c for line, c in reversed(cells) if line <= node.lineno), "")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [node.name] if isinstance(node, DEFINED) else [t.id for t in targets if isinstance(t, ast.Name)]
        if not names:                                      # what an `if`, a `try` or a tuple binds
            inner = [n.name if isinstance(n, DEFINED) else n.id for n in ast.walk(node) if isinstance(n, DEFINED)
                     or isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            names = [name for name in inner if name not in found]
        for patch in getattr(node, "decorator_list", []):
            if isinstance(patch, ast.Call) and ast.unparse(patch.func) == "patch_to":
                names = [f"{ast.unparse(patch.args[0])}.{node.name}"]
        found |= {name: (node, cell) for name in names}
    return found


def prose(text: str | None) -> list[str]:
    "The lines of a docstring, so that Markdown shows them as they are."
    spans = re.split(r"(`[^`\n]+`)", inspect.cleandoc(text or ""))
    plain = "".join(s if k % 2 else re.sub(r"([\\`*_\[\]<>|$#~])", r"\\\1", s) for k, s in enumerate(spans))
    return [re.sub(r"^(\s*)(\d+)\.", r"\1\2\\.", line) for line in plain.split("\n")]


def signature(node: ast.FunctionDef, name: str, method: bool = False) -> str:
    args = ast.parse(ast.unparse(node)).body[0].args
    if method and (args.posonlyargs or args.args):
        (args.posonlyargs or args.args).pop(0)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(args)}){returns}"


def directive(kind: str, head: str, body: list[str], depth: int) -> list[str]:
    fence = "`" * (3 + depth)
    return [f"{fence}{{py:{kind}}} {head}", "", *body, fence, ""]


def entry(name: str, number: str, page: str, defs, patches) -> list[str]:
    "One name: signature, docstring, its methods if it is a class, and a link to the cell that builds it."
    node, cell = defs[number][name]
    where = [f"Built and tested in [chapter {number}]({page}.ipynb#cell-{cell}).", ""]
    doc = ast.get_docstring(node) if isinstance(node, DEFINED) else None
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return directive("function", signature(node, name), prose(doc) + ["", *where], 0)
    if not isinstance(node, ast.ClassDef):
        text = ast.unparse(getattr(node, "value", None) or node).splitlines()[0][:300]
        return directive("data", name, [f"`{text}`", "", *where], 0)
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    body = prose(doc) + ["", *where]
    for n in methods.values():
        if not n.name.startswith("_") and ast.get_docstring(n):
            static = any(ast.unparse(d) in ("staticmethod", "property") for d in n.decorator_list)
            kind = "property" if any(ast.unparse(d) == "property" for d in n.decorator_list) else "method"
            head = n.name if kind == "property" else signature(n, n.name, not static)
            body += directive(kind, head, prose(ast.get_docstring(n)), 1)
    for n, chapter, its_cell, its_page in patches.get(name, []):
        added = ["", f"Given to the class by [chapter {chapter}]({its_page}.ipynb#cell-{its_cell})."]
        body += directive("method", signature(n, n.name, True), prose(ast.get_docstring(n)) + added, 1)
    fields = [ast.unparse(f) for f in node.body if isinstance(f, ast.AnnAssign)]
    dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    head = signature(methods["__init__"], name, True) if "__init__" in methods else \
        f"{name}({', '.join(fields)})" if dataclass or "NamedTuple" in [ast.unparse(b) for b in node.bases] else name
    return directive("class", head.replace(" -> None", ""), body, 2)


def door() -> dict[str, str]:
    "Public name of the door -> number of the chapter whose version it is."
    text = (ROOT / settings["door_path"] / "__init__.pyi").read_text(encoding="utf-8")
    return {m[2]: m[1] for m in re.finditer(rf"^from {settings['lib_path']}\.nb(\w+) import (\w+) as \2$", text, re.M)}


def write_reference(numbers: dict[str, Path]) -> dict[str, str]:
    "Write the reference's pages; what every exported name links to, page and anchor."
    defs, names = {n: definitions(n) for n in numbers}, door()
    patches: dict[str, list] = {}
    for n, found in defs.items():
        for full, (node, cell) in found.items():
            if "." in full and "._" not in full:
                patches.setdefault(full.split(".")[0], []).append((node, n, cell, numbers[n].stem))
    links = {name: f"{numbers[n].stem}#cell-{cell}" for n, found in defs.items() for name, (_, cell) in found.items()
             if not name.startswith("_") and "." not in name}
    index = ["# Reference", "", "Every name that `import groundup as gu` offers, by theme.", "", "```{toctree}"]
    pages = []
    left = set(names)
    for theme, its in THEMES.items():
        mine = [name for name, n in names.items() if n in its.split()]
        left -= set(mine)
        if not mine:
            continue
        slug = "reference-" + re.sub(r"\W+", "-", theme.lower()).strip("-")
        page = [f"# {theme}", "", f"```{{py:currentmodule}} {settings['door_path']}", "```", ""]
        for name in mine:
            page += entry(name, names[name], numbers[names[name]].stem, defs, patches)
            links[name] = f"{slug}#{settings['door_path']}.{name}"
        (SRC / f"{slug}.md").write_text("\n".join(page), encoding="utf-8")
        index.append(slug)
        pages += [f"- [{theme}]({slug}.md): " + ", ".join(f"`{name}`" for name in mine)]
    if left:
        raise SystemExit(f"book: no theme of docs/book/build.py has the chapter of {', '.join(sorted(left))}")
    (SRC / "reference.md").write_text("\n".join([*index, "```", "", *pages, ""]), encoding="utf-8")
    return links


# -- the pages

def relink(text: str) -> str:
    "A document's links, as they are in the repository, as they are in the book."
    known = {**DOCUMENTS, "README.md": "index", f"{settings['door_path']}/__init__.pyi": "reference"}

    def there(m):
        path, anchor = re.fullmatch(r"([^#]*)(#.*)?", m[2]).groups()
        path = path.removeprefix("../")
        path = path if path in known or path.startswith("nbs/") else f"docs/{path}" if f"docs/{path}" in known else path
        if path.startswith("nbs/"):
            return f"{m[1]}({path.removeprefix('nbs/')}{anchor or ''})"
        return f"{m[1]}({known[path]}.md{anchor or ''})" if path in known else m[1][1:-1]

    return re.sub(r"(?<!!)(\[[^\]]+\])\((?!https?:|#)([^)\s]+)\)", there, text)


def first_page(numbers: dict[str, Path]) -> str:
    "index.md with the table of contents, a part after the other."
    toc = []
    for (start, part), end in zip(PARTS.items(), [*PARTS, "99"][1:], strict=True):
        its = [f"{n} · {title(p)} <{p.stem}>" for n, p in numbers.items() if start <= n < end]
        toc += ["```{toctree}", ":hidden:", f":caption: {part}", "", *its, "```", ""] if its else []
    toc += ["```{toctree}", ":hidden:", ":caption: Look up", "", "reference",
            *[d for path, d in DOCUMENTS.items() if (ROOT / path).exists()], "```", ""]
    return (HERE / "index.md").read_text(encoding="utf-8") + "\n" + "\n".join(toc)


def stage() -> None:
    "Everything that Sphinx reads, into `_out/book-src`."
    shutil.rmtree(SRC, ignore_errors=True)
    (SRC / "img").mkdir(parents=True)
    numbers = chapters()
    for path in numbers.values():
        text = path.read_text(encoding="utf-8")
        for document, name in {**DOCUMENTS, "README.md": "index"}.items():
            text = text.replace(f"](../{document}", f"]({name}.md")
        (SRC / path.name).write_text(text, encoding="utf-8")
    for path in (ROOT / "docs" / "img").glob("*.png"):
        shutil.copy(path, SRC / "img")
    for path, name in DOCUMENTS.items():
        if (ROOT / path).exists():
            (SRC / f"{name}.md").write_text(relink((ROOT / path).read_text(encoding="utf-8")), encoding="utf-8")
    (SRC / "index.md").write_text(first_page(numbers), encoding="utf-8")
    exports = {p.stem: [n for n in definitions(c) if "." not in n and not n.startswith("_")]
               for c, p in numbers.items()}
    last = door()                                           # of what a later chapter replaces, each has its own version
    older = {p.stem: {n: f"{p.stem}#cell-{cell}" for n, (_, cell) in definitions(c).items()
                      if n in exports[p.stem] and last.get(n) != c} for c, p in numbers.items()}
    book = {"names": write_reference(numbers), "chapters": {n: p.stem for n, p in numbers.items()}, "exports": exports,
            "older": older}
    (SRC / "book.json").write_text(json.dumps(book, indent=1), encoding="utf-8")


def drop_icons() -> None:
    "The theme's script draws 2,141 icons, on every page 1.5 MB: keep the dozen that the pages show."
    script = BOOK / "_static" / "scripts" / "fontawesome.js"
    shown = [p.read_text(encoding="utf-8") for p in [*BOOK.glob("*.html"), *script.parent.glob("*[!e].js")]]
    used = {icon for text in shown for icon in re.findall(r"\bfa-([\w-]+)", text)}
    icon = re.compile(r'"?([\w-]+)"?:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')
    script.write_text(icon.sub(lambda m: m[0] if used & {m[1], *re.findall(r'"([\w-]+)"', m[2])} else "",
                               script.read_text(encoding="utf-8")), encoding="utf-8")
    for source in BOOK.rglob("*.js.map"):
        source.unlink()


def follow_links() -> None:
    "Links to notebooks in what cells have printed lead to the pages made from them."
    for page in BOOK.glob("[0-9]*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r'href="(\d\d[a-z]?_\w+)\.ipynb"', r'href="\1.html"', text), encoding="utf-8")


def main() -> int:
    from sphinx.cmd.build import main as sphinx
    start = time.perf_counter()
    os.environ["BOOK_SRC"] = str(SRC)                      # for conf.py, which Sphinx reads from this folder
    if BOOK.exists() and any(BOOK.iterdir()) and sys.argv[1:] and not (BOOK / ".nojekyll").exists():
        sys.exit(f"book: {BOOK} is no book that this has built: name another folder, or empty it")
    stage()
    shutil.rmtree(BOOK, ignore_errors=True)
    BOOK.mkdir(parents=True)
    (BOOK / ".nojekyll").touch()                           # for GitHub, and by which the folder is known as ours
    status = sphinx(["-W", "--keep-going", "-q", "-j", "auto", "-b", "html", "-c", str(HERE), str(SRC), str(BOOK)])
    if not status:
        drop_icons()
        follow_links()
        pages = list(BOOK.glob("*.html"))
        print(f"{BOOK / 'index.html'}: {len(pages)} pages, "
              f"{time.perf_counter() - start:.0f} s, {sum(p.stat().st_size for p in BOOK.rglob('*')) / 1e6:.1f} MB")
    return status


if __name__ == "__main__":
    sys.exit(main())
