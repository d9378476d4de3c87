"""What every committed notebook promises a reader before anything is run: clean, complete, small, and readable."""
import copy
import json
import re
import statistics
from pathlib import Path

import pytest
from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parents[2]
SIZES = get_config(path=ROOT)["allowed_out_metadata_keys"]  # a picture's
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(nb: dict) -> list[dict]:
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def outputs(nb: dict) -> list[tuple[dict, dict]]:
    return [(c, o) for c in code_cells(nb) for o in c["outputs"]]


@each
def test_cleaning_would_change_nothing(path):
    nb = load(path)
    cleaned = copy.deepcopy(nb)
    clean_nb(cleaned, allowed_cell_metadata_keys=["tags"], allowed_out_metadata_keys=SIZES)
    assert cleaned == nb, "run: make clean-nbs"
    text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert path.read_text(encoding="utf-8") == text, "not as nbdev writes it; run: make clean-nbs"
    assert set(nb["metadata"]) == {"kernelspec"}
    assert nb["metadata"]["kernelspec"]["name"] == "python3"


@each
def test_has_its_outputs_and_no_fault_in_them(path):
    nb = load(path)
    assert outputs(nb), "no outputs; run: tools/run_notebook.py --save"
    for cell, o in outputs(nb):
        where = f"cell {cell['id']}"
        if o["output_type"] == "error":
            meant = "raises-exception" in cell["metadata"].get("tags", [])
            assert meant, f"{where} ends in {o['ename']}: {o['evalue']}"
        assert o.get("name") != "stderr", f"{where} prints to stderr: {''.join(o['text'])[:200]}"
        text = "".join(o.get("text", [])) + "".join(o.get("data", {}).get("text/plain", []))
        assert "Warning" not in text, f"{where} shows a warning: {text[:200]}"
        assert "\r" not in text and "\x1b[" not in text, f"{where} holds terminal control codes"
        assert not re.search(r"\bat 0x[0-9a-f]{6,}", text), f"{where} shows a memory address"
        assert "application/vnd.jupyter.widget-view+json" not in o.get("data", {}), f"{where} holds widget state"


@each
def test_was_run_on_the_real_images(path):
    "Without them a run passes, too, but its numbers are not those that the text speaks of. Chapter 00c shows both."
    said = "\n".join("".join(o.get("text", [])) for _, o in outputs(load(path)))
    sources = set(re.findall(r"^\w+: [\d,]+ \+ [\d,]+ images, (real|BUILT-IN)", said, re.M))
    meant = {"real", "BUILT-IN"} if path.stem == "00c_data" else {"real"}
    assert sources <= meant and ("real" in sources or not sources), "set GROUNDUP_DATA, and run it again with --save"


@each
def test_is_small_enough_to_read_on_the_web(path):
    assert path.stat().st_size <= 600_000


def test_all_together_are_small_enough():
    assert sum(p.stat().st_size for p in NOTEBOOKS) <= 12_000_000


@each
def test_text_outputs_are_short(path):
    "Nine outputs of ten stay below 2,000 bytes, pictures aside; of a table's text and HTML a page shows only one."
    sizes = [len("".join(o.get("text", []))) + max([len("".join(v)) for k, v in o.get("data", {}).items()
             if k.startswith("text/")], default=0) for _, o in outputs(load(path))]
    assert statistics.quantiles(sizes, n=10, method="inclusive")[-1] <= 2_000 if len(sizes) > 1 else True


def heading(cell: dict) -> str:
    "The first line of a markdown cell, lower case, if it is a heading."
    first = "".join(cell["source"]).split("\n")[0]
    return first.lower() if cell["cell_type"] == "markdown" and first.startswith("#") else ""


def way(cell: dict) -> bool:
    "Is this the line that leads to the chapters before and after?"
    return cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith(("**Previous:**", "**Next:**"))


def number(path: Path) -> str:
    return path.stem.split("_")[0]


def title(path: Path) -> str:
    first = next(c for c in load(path)["cells"] if c["cell_type"] == "markdown")
    return "".join(first["source"]).split("\n")[0].removeprefix("# ")


def prose(nb: dict) -> str:
    "All markdown of a notebook, without what stands in backticks or fences."
    text = "\n\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


@each
def test_ends_with_the_way_to_its_neighbours(path):
    "The last cell, in the order of the file names: **Previous:** [number title](file) · **Next:** [number title](file)"
    where, cells = NOTEBOOKS.index(path), load(path)["cells"]
    links = []
    for word, i in ("Previous", where - 1), ("Next", where + 1):
        if 0 <= i < len(NOTEBOOKS):
            links.append(f"**{word}:** [{number(NOTEBOOKS[i])} {title(NOTEBOOKS[i])}]({NOTEBOOKS[i].name})")
    ends = [i for i, c in enumerate(cells) if way(c)]
    assert ends == [len(cells) - 1], f"the last cell should be: {' · '.join(links)}"
    for i in ends:
        assert "".join(cells[i]["source"]) == " · ".join(links)


@each
def test_can_be_opened_alone(path):
    "Its first cell, the same everywhere and folded, brings the package where it is missing, on Colab for one."
    first = load(path)["cells"][0]
    assert first["metadata"] == {"tags": ["hide-input", "remove-cell"]} and first["outputs"] == []
    assert "".join(first["source"]) == "".join(load(NOTEBOOKS[0])["cells"][0]["source"])


def test_the_first_cell_installs_the_package_where_it_is_missing(monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    code, asked = "".join(load(NOTEBOOKS[0])["cells"][0]["source"]), []
    shell = InteractiveShell()
    shell.register_magic_function(asked.append, magic_name="pip")
    assert shell.run_cell(code).success and asked == []                         # here it is
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert shell.run_cell(code).success and asked == ['install -q "groundup[data]"']


@each
def test_names_no_chapter_without_a_link(path):
    "A chapter that is mentioned can be clicked at, and the click leads to the chapter that was mentioned."
    text, known = prose(load(path)), {p.name: number(p) for p in NOTEBOOKS}
    for said, file in re.findall(r"\[([^]]*)\]\(([^)\s]*\.ipynb)\)", text):
        assert file in known, f"{said} leads to {file}, which is not there"
        assert set(re.findall(r"(?:^|hapters? )(\d\d[a-c]?)\b", said)) <= {known[file]}, f"{said} leads to {file}"
    if number(path) < "08":                         # 08 and after follow
        bare = re.findall(r"[^.\n]*\bchapters? \d\d[^.\n]*", re.sub(r"\[[^]]*\]\([^)]*\)", "", text), re.I)
        assert not bare, bare


@each
def test_few_refusals_in_the_story(path):
    "What a function refuses belongs into the contract; before it are at most four that teach something."
    early = sum("".join(c["source"]).count("test_fail(") for c in story(load(path)) if c["cell_type"] == "code")
    assert early <= 4, f"{early} before the contract"


def test_the_map_has_every_chapter():
    "Chapter 00 makes it from the chapters, when it is run."
    nb = load(ROOT / "nbs" / "00_exports.ipynb")
    tables = ["".join(o["data"].get("text/markdown", "")) for c in code_cells(nb) for o in c["outputs"] if "data" in o]
    shown = re.findall(r"^\| \*\*\[([^]]*)\]\(([^)]*)\)", "\n".join(tables), re.M)
    titles = [title(p) for p in NOTEBOOKS]
    there = [(f"{number(p)} {t}", p.name) for p, t in zip(NOTEBOOKS, titles, strict=True)]
    assert shown == there, "run 00 again, with --save"


@each
def test_opens_with_a_title_and_closes_with_what_is_next(path):
    "Title first; then the story; what we have now and experiments; then, where there is one, the contract."
    cells = [c for c in load(path)["cells"][1:] if not way(c)]
    assert heading(cells[0]).startswith("# ")
    start = next((i for i, c in enumerate(cells) if heading(c) == "## the contract"), len(cells))
    story = "\n".join("".join(c["source"]) for c in cells[:start] if c["cell_type"] == "markdown").lower()
    assert "what we have now" in story[-6000:] and "experiments" in story[-5000:]
    after = cells[start + 1:]
    assert all(h.startswith("###") for h in map(heading, after) if h), "the contract is the last section"
    code = [c for c in after if c["cell_type"] == "code"]
    assert len(code) <= 8, f"{len(code)} code cells in the contract: move some to tests/library"
    shown = [c["id"] for c in code if "hide-input" not in c["metadata"].get("tags", [])]
    assert not shown, f"cells of the contract without the tag hide-input: {shown}"


def story(nb: dict) -> list[dict]:
    "The cells before the contract."
    start = next((i for i, c in enumerate(nb["cells"]) if heading(c) == "## the contract"), len(nb["cells"]))
    return nb["cells"][:start]


@each
def test_reads_as_prose_and_code(path):
    "The measured style targets: prose beside code, short cells in the story (definitions apart), checks everywhere."
    nb = load(path)
    del nb["cells"][0]                                      # which installs the package
    cells = story(nb)
    srcs = ["".join(c["source"]) for c in code_cells({"cells": cells})]
    shown = [s for s in srcs if not s.startswith("#export")]
    lines = sorted(sum(bool(ln.strip()) for ln in s.splitlines()) for s in shown)
    prose = sum(c["cell_type"] == "markdown" for c in cells) / len(srcs)
    everything = ["".join(c["source"]) for c in code_cells(nb)]
    checked = sum(bool(re.search(r"\btest(_\w+)?\(|\bassert\b", s)) for s in everything) / len(everything)
    assert 0.6 <= prose <= 1.35, f"{prose:.2f} prose cells per code cell"
    assert statistics.median(lines) <= 5 and lines[int(0.9 * (len(lines) - 1))] <= 14, lines
    assert checked >= 0.3, f"checks in {checked:.0%} of code cells"
    kinds = "".join("m" if c["cell_type"] == "markdown" else "c" for c in cells)
    assert max(map(len, kinds.split("m"))) <= 5, "a long run of code without prose"


def test_readme_maps_every_chapter():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [p.stem for p in NOTEBOOKS if f"nbs/{p.name}" not in readme]
    assert not missing, f"not in the README's map: {missing}"
