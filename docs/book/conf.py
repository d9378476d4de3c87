"""How the book looks, and what is added to its pages: build.py, which `make book` runs, has Sphinx read this."""
import json
import os
import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent.parent
cfg = ConfigParser()
cfg.read(ROOT / "settings.ini", encoding="utf-8")
settings = cfg["DEFAULT"]
repository = settings.get("repository", "").rstrip("/")

project = html_title = settings["name"]
version = release = settings["version"]
author, copyright = f"the authors of {project}", f"the authors of {project}, {settings['license']}"
extensions = ["myst_nb"]
exclude_patterns = ["_static"]
templates_path: list[str] = []
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_favicon = "_static/groundup.svg"
html_context = {"default_mode": "auto"}                    # light or dark as the reader's system is
html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": True, "use_fullscreen_button": False, "show_toc_level": 2, "navigation_with_keys": True,
    "show_navbar_depth": 1, "navbar_persistent": [], "home_page_in_toc": True,
    "pygments_light_style": "tango", "pygments_dark_style": "monokai",
    **({"repository_url": repository, "repository_branch": "main", "path_to_docs": settings["nbs_path"],
        "use_repository_button": True, "use_source_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"}} if repository else {}),
}
html_copy_source, html_show_sourcelink = True, False
nb_execution_mode = "off"                                  # the committed outputs are what the reader is to see
nb_merge_streams = True
nb_render_markdown_format = "myst"                         # tables, too
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
CHAPTER = re.compile(r"\b\d\d[a-z]?\b")


def add_math(self, node):
    "Formulas as MathML, which browsers draw with their own fonts: nothing has to be fetched."
    display = isinstance(node, nodes.math_block)
    mathml = convert(node.astext(), display="block" if display else "inline").replace(r"\_", "_")
    self.body.append(f'<div class="math">{mathml}</div>\n' if display else mathml)
    raise nodes.SkipNode


def cells_of(app, docname):
    path = Path(app.srcdir, f"{docname}.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else None


def name_cells(app, doctree):
    "Each code cell gets its id as an anchor, each picture the sentence that leads to it as its text alternative."
    docname = app.env.docname
    cells = cells_of(app, docname)
    if cells is None:
        return
    code = [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()
            and "remove-cell" not in c["metadata"].get("tags", [])]
    found = [n for n in doctree.findall(nodes.container) if "cell" in n.get("classes", [])]
    if len(found) != len(code):
        raise ValueError(f"{docname}: {len(code)} code cells became {len(found)} on its page")
    for node, cell in zip(found, code, strict=True):
        anchor = nodes.target("", "", ids=[f"cell-{cell['id']}"])
        node.parent.insert(node.parent.index(node), anchor)
        app.env.metadata[docname].setdefault("myst_slugs", {})[f"cell-{cell['id']}"] = (None, f"cell-{cell['id']}", "")
        before = "".join(next((c["source"] for c in reversed(cells[:cells.index(cell)])
                               if c["cell_type"] == "markdown"), ""))
        lead = re.sub(r"\[([^\]]+)\]\([^)]*\)|[`*#$|]", r"\1", before.strip().split("\n\n")[-1]).replace("\n", " ")
        for picture in node.findall(nodes.image):
            if not picture.get("alt"):
                picture["alt"] = f"Picture drawn by the cell above. {lead}"[:400]
    if names := app.config.book_exports.get(docname):
        line = nodes.paragraph("", "This chapter exports ", classes=["exports"])
        for k, name in enumerate(names):
            line += [nodes.Text(", ")] * (k > 0) + [nodes.literal(name, name)]
        doctree[0] += line


def add_links(app, doctree, docname):
    "Names of the library in the prose become links to their entries, mentions of a chapter links to it."
    names, chapters = {**app.config.book_names, **app.config.book_older.get(docname, {})}, app.config.book_chapters
    code = "\n".join("".join(c["source"]) for c in cells_of(app, docname) or () if c["cell_type"] == "code")
    own = set(re.findall(r"^ *(?:def|class) (\w+)", code, re.M)) - set(app.config.book_exports.get(docname, ()))

    def link(target, inner):
        page, _, anchor = target.partition("#")
        uri = app.builder.get_relative_uri(docname, page) + (f"#{anchor}" if anchor else "")
        ref = nodes.reference("", "", internal=True, refuri=uri)
        ref += inner
        return ref

    def linked(node):
        while node := node.parent:
            if isinstance(node, (nodes.reference, nodes.title, nodes.literal_block, nodes.FixedTextElement)):
                return True
            if "cell_output" in node.get("classes", []) or "sig" in node.get("classes", []):
                return True
        return False

    for node in list(doctree.findall(nodes.literal)):
        m = re.fullmatch(r"(?:gu\.)?(\w+)(?:\(.*\))?", node.astext())
        if m and m[1] in names and m[1] not in own and not linked(node):
            node.replace_self(link(names[m[1]], node.deepcopy()))
    for node in list(doctree.findall(nodes.Text)):
        text = node.astext()
        if "hapter" not in text or linked(node) or isinstance(node.parent, nodes.literal):
            continue
        new, end = [], 0
        for mention in re.finditer(r"\b[Cc]hapters? \d\d[a-z]?((, | and | or | to |–)\d\d[a-z]?)*", text):
            for number in CHAPTER.finditer(text, mention.start(), mention.end()):
                if target := chapters.get(number[0]):
                    new += [nodes.Text(text[end:number.start()]), link(target, nodes.Text(number[0]))]
                    end = number.end()
        if new:
            parent, at = node.parent, node.parent.index(node)
            parent.remove(node)
            for k, part in enumerate([*new, nodes.Text(text[end:])]):
                parent.insert(at + k, part)


def setup(app):
    app.add_config_value("book_names", {}, "env")
    app.add_config_value("book_chapters", {}, "env")
    app.add_config_value("book_exports", {}, "env")
    app.add_config_value("book_older", {}, "env")
    app.add_html_math_renderer("mathml", (add_math, None), (add_math, None))
    app.connect("doctree-read", name_cells)
    app.connect("doctree-resolved", add_links)


html_math_renderer = "mathml"
book = json.loads(Path(os.environ["BOOK_SRC"], "book.json").read_text(encoding="utf-8"))
book_names, book_chapters, book_exports, book_older = (book[k] for k in ("names", "chapters", "exports", "older"))
