"""Properties of the exporter and of the runner's reading and saving, on random and on damaged notebooks.

The tools' functions are called in this process, as that is a hundred times faster; a sample goes by the command line.
"""
import json
import os
import random
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import notebook2script
import pytest
from common import BadFile
from conftest import ROOT, run_tool
from exporter import module
from figures import LONG, figure, times
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runner.notebook import Notebook
from runner.save import NotSaved, save

pytestmark = pytest.mark.torture

NB, MODULE = "01_a.ipynb", "nb01.py"
SEEN = Counter()                                           # examples that came through, by property


def examples(quick: int, long: int) -> settings:
    "The same examples each time in the quick form, ever new ones in the long form."
    return settings(max_examples=times(quick, long), derandomize=not LONG, database=None, deadline=None,
                    print_blob=True, suppress_health_check=list(HealthCheck))


class House:
    "A project in a folder, emptied for each example, and what exporter and runner do there."
    def __init__(self, root: Path):
        self.root, self.nb, self.module = root, root / "nbs" / NB, root / "exp" / MODULE
        (root / "nbs").mkdir()
        for name in ("settings.ini", "pyproject.toml"):
            (root / name).write_bytes((ROOT / name).read_bytes())

    def put(self, data: bytes, module: bytes | None = None) -> None:
        "Only this notebook and this module are there."
        for folder in "nbs", "exp":
            shutil.rmtree(self.root / folder, ignore_errors=True)
        self.nb.parent.mkdir()
        self.nb.write_bytes(data)
        if module is not None:
            self.module.parent.mkdir()
            self.module.write_bytes(module)

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for folder in ("nbs", "exp") for p in (self.root / folder).glob("*")}

    def ok(self, *args) -> None:
        assert notebook2script.main(list(args)) == 0, (args, self.nb.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "Nothing here is about the disk: no waiting for it."
    house, before, sync = House(tmp_path_factory.mktemp("house")), os.getcwd(), os.fsync
    os.chdir(house.root)
    os.fsync = lambda fd: None
    yield house
    os.fsync = sync
    os.chdir(before)
    figure("random notebooks and what the exporter makes of them", **SEEN, exceptions=0)


@pytest.fixture(autouse=True)
def quiet(capsys):
    yield
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err


# -- random notebooks --------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=15)
NAMES = ["alpha", "Beta", "_gamma", "__delta", "été", "Ω", "ﬁ", "ｗide", "名前"]
# a statement with names in the place of a, b; `|` and the public ones among those that it binds for good
STATEMENTS = r"""
a = 1|a
a, (b, *_) = 1, (2, 3)|a b
a = b = 'text  '|a b
a: int = 1|a
a: int|
_ = 1|
import math as a|
from math import pi as a, tau as b|
from math import *|
for a in range(2): pass|a
def a(x):\n    def inner(): return 1\n    return x|a
async def a(x: int = 1) -> int:\n    return x|a
class a:\n    'Text.'\n    b = 1\n\n    def method(self):\n        self.b = 2|a
if True:\n    a = 1\nelse:\n    a = 2|a
if __name__ == '__main__':\n    a = 1\nelse:\n    b = 2|b
try:\n    a = 1\nexcept OSError as e:\n    a = 2\nfinally:\n    b = 3|a b
import contextlib\nwith contextlib.nullcontext() as a:\n    b = 1|a b
import functools\n@functools.cache\ndef a(): return 1|a
a = [b for b in range(3)]|a
(a := 2)|a
match [1, 2]:\n    case [a, *b]: pass|a b
while True:\n    a = 1\n    break|a
for a, b in [(1, 2)]:\n    if b: pass|a b
a = {}\na['b'] = 1|a
a = 1\na += 1|a
a = 1\ndel a|
a = '''\n#export\n\n# %% not one\n'''|a
a = f'{1 + 1}'; b = lambda x: x|a b
'only words'|
pass|
assert 1 + 1 == 2  # \|
""".strip().split("\n")


@st.composite
def statements(draw, number: int) -> tuple[str, list[str]]:
    "Code, and the names it should export; `number` makes them its own."
    code, _, bound = draw(st.sampled_from(STATEMENTS)).replace("\\n", "\n").rpartition("|")
    real = {short: f"{draw(st.sampled_from(NAMES))}_{short}{number}" for short in "ab"}
    code = re.sub(r"\b([ab])\b", lambda m: real[m[1]], code)
    names = [unicodedata.normalize("NFKC", real[short]) for short in bound.split()]
    if draw(st.booleans()):
        code = draw(st.sampled_from(["# {}\n", "\n \t\n", "\f", "'''\n{}\n'''\n", "# #export {}\n"])).format(
            re.sub(r"['\\]", "", draw(words))) + code
    return code, [n for n in names if not n.startswith("_")]


@st.composite
def sources(draw, number: int) -> tuple[str, str, list[str]]:
    "Type and source of a cell, and the names it exports."
    kind = draw(st.sampled_from(["export"] * 4 + ["plain", "magic", "markdown", "raw"]))
    if kind == "export":
        head = draw(st.sampled_from(["#export\n", "# export\n", "#|export\n", "\n \n  #Export \n"]))
        parts = draw(st.lists(statements(number), min_size=1, max_size=1)) + (
            draw(st.lists(statements(number + 1000), max_size=1)))
        return "code", head + "\n".join(c for c, _ in parts), [n for _, names in parts for n in names]
    text = {"plain": "f(1 +", "magic": "%%time\nx?\n!ls", "markdown": "# Title", "raw": "***"}[kind]
    return "code" if kind in ("plain", "magic") else kind, text + draw(words), []


LAYOUTS = {"jupyter": dict(indent=1, ensure_ascii=False), "ascii": dict(indent=1), "flat": dict(separators=(",", ":")),
           "wide": dict(indent=4, ensure_ascii=False), "loose": dict(separators=(" ,\t", " :  "), ensure_ascii=False)}


@st.composite
def notebooks(draw, odd: bool = False) -> tuple[bytes, list[str]]:
    "A notebook's file, and the names its module should export; `odd`: lines of cells split where nobody splits them."
    cells, names = [], []
    for number in range(draw(st.integers(0, 6))):
        kind, source, exported = draw(sources(number))
        names += exported
        lines = re.findall(r"[^\n]*\n|[^\n]+", source)
        if odd and draw(st.booleans()):
            cut = draw(st.integers(0, len(source)))
            lines = [source[:cut], "", source[cut:]]
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {"tags": draw(st.lists(words, max_size=1))}}
        if kind == "code":
            said = [{"output_type": "stream", "name": "stdout", "text": [draw(words) + "\n"]}]
            cell |= {"execution_count": draw(st.sampled_from([None, 1])), "outputs": draw(st.sampled_from([[], said]))}
        cells.append(cell | {"source": source if draw(st.integers(0, 3)) == 0 else lines})
    doc = {"cells": cells, "metadata": {"title": "ü" + draw(words)}, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(doc, **LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]) + draw(st.sampled_from(["", "\n"]))
    text = text.replace("\n", "\r\n") if draw(st.booleans()) else text
    return ("\ufeff" * draw(st.integers(0, 1)) + text).encode(), list(dict.fromkeys(names))


@examples(60, 600)
@given(notebook=notebooks(odd=True))
def test_modules_compile_and_export_what_all_says(house, notebook):
    data, names = notebook
    house.put(data)
    house.ok()
    assert house.nb.read_bytes() == data
    if not house.module.exists():
        assert names == []
        return
    made, space = house.module.read_bytes(), {}
    exec(compile(made, MODULE, "exec"), space)
    assert space["__all__"] == names
    assert all(name in space for name in names)
    made_here = {n for n, v in space.items() if getattr(v, "__module__", "") == "builtins" and callable(v)}
    assert {n for n in made_here if not n.startswith("_")} <= set(names)
    house.ok()
    house.ok("--check")
    house.ok("--update")
    assert house.files() == {NB: data, MODULE: made}
    SEEN["modules_that_export_their_names"] += 1


@examples(40, 400)
@given(notebook=notebooks(), edits=st.lists(st.sampled_from(["new", "gone", "changed", "kept"]), min_size=6,
                                            max_size=6),
       text=words)
def test_update_and_back_is_the_identity(house, notebook, edits, text):
    data, _ = notebook
    house.put(data)
    house.ok()
    if not house.module.exists():
        return
    text_before = house.module.read_text(encoding="utf-8")
    edited, wanted = text_before, {}
    blocks = module.taken_apart(text_before).blocks
    for edit, (cell, digest, code) in zip(edits, blocks, strict=False):
        line = f"assert {text!r} != 1  # {cell} {text}"
        new = {"new": f"{code}\n{line}", "gone": line, "changed": f"{line}\n\n{code}\n", "kept": code}[edit]
        header = f"#{cell} ({digest})\n"
        edited = edited.replace(header + code, header + new)
        wanted[cell] = new
    house.module.write_bytes(edited.encode())
    house.ok("--update")
    house.ok("--check")
    assert as_nbdev_writes_it(house.nb.read_bytes()) or house.nb.read_bytes() == data
    assert without(house.nb.read_bytes(), wanted) == without(data, wanted)
    for cell in json.loads(house.nb.read_text(encoding="utf-8-sig"))["cells"]:
        if cell["id"] in wanted:
            assert "".join(cell["source"]).endswith("\n" + wanted[cell["id"]])
    back = house.module.read_text(encoding="utf-8")
    for cell, _, code in blocks:
        back = re.sub(rf"(#{cell} \(\w+\)\n){re.escape(wanted[cell])}", lambda m, code=code: m[1] + code, back)
    house.module.write_bytes(back.encode())
    house.ok("--update")
    assert house.module.read_bytes() == text_before.encode()
    assert sources_of(house.nb.read_bytes()) == sources_of(data)
    assert without(house.nb.read_bytes(), wanted) == without(data, wanted)
    SEEN["edited_and_back"] += 1


def as_nbdev_writes_it(data: bytes) -> bool:
    return data.decode() == json.dumps(json.loads(data), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def without(data: bytes, ids: dict) -> dict:
    "A notebook's document without the sources of some cells: what --update may not change."
    doc = json.loads(data.decode("utf-8-sig"))
    for cell in doc["cells"]:
        if cell["id"] in ids:
            del cell["source"]
    return doc


# -- damaged notebooks -------------------------------------------------------------------------------------------------

def sample() -> bytes:
    "A notebook as Jupyter writes it, with something of everything."
    cells = [{"cell_type": "markdown", "id": "first", "metadata": {}, "source": ["# Tïtle"]},
             {"cell_type": "code", "execution_count": 1, "id": "second", "metadata": {"tags": ["skip-execution"]},
              "outputs": [{"output_type": "stream", "name": "stdout", "text": ["ü\n"]}],
              "source": ["#export\n", "import math\n", "\n", "def f(x):\n", "    return 'é\\n'"]},
             {"cell_type": "code", "execution_count": None, "id": "third", "metadata": {},
              "outputs": [{"output_type": "execute_result", "execution_count": 2, "data": {"text/plain": ["2"]},
                           "metadata": {}}], "source": "#export\nx = 1"},
             {"cell_type": "raw", "id": "fourth", "metadata": {}, "source": []}]
    meta = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    doc = {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(doc, indent=1, ensure_ascii=False) + "\n").encode()


def outside(data: bytes) -> list[int]:
    "The places of all bytes that are not inside a string of a cell's source."
    inside = set()
    for m in re.finditer(rb'"source": (\[[^\]]*\]|"(?:[^"\\]|\\.)*")', data):
        for text in re.finditer(rb'"((?:[^"\\]|\\.)*)"', m[1]):
            inside |= set(range(m.start(1) + text.start(1), m.start(1) + text.end(1)))
    return [i for i in range(len(data)) if i not in inside]


def damages(rng: random.Random, per_place: int, share: float) -> list[tuple[int, bytes]]:
    "Damaged forms of the sample: a share of its places, each with a bit flipped, and with a byte that means something."
    data, made = sample(), []
    for i in outside(data):
        telling = rng.choice(b'"\\{}[],: \n\t\r\0\x1f0129-ex\x7f\x80\xc3\xff')
        for byte in (data[i] ^ 1 << rng.randrange(8), telling, rng.randrange(256))[:per_place]:
            if byte != data[i] and rng.random() < share:
                made.append((i, data[:i] + bytes([byte]) + data[i + 1:]))
    return made


def code_of(raw: bytes) -> tuple:
    "A module without the ids of cells: an id is outside a cell's text, and a new one has to be followed."
    mod = module.module_in(raw)
    return mod.frame, [(digest, code) for _, digest, code in mod.blocks]


def test_one_damaged_byte_never_changes_a_module(house):
    rng, refused, same = random.Random(42), 0, 0
    house.put(sample())
    house.ok()
    exported = house.module.read_bytes()
    edited = exported.replace(b"x = 1", b"x = 2\ny = 3")
    damaged = damages(rng, 2, times(10, 100) / 100)
    for place, data in damaged:
        house.put(data, exported)
        status = notebook2script.main([])
        assert status in (0, 1), place
        assert house.nb.read_bytes() == data, place
        assert (code_of(house.module.read_bytes()) == code_of(exported)) if status == 0 else (
            house.module.read_bytes() == exported), place
        refused, same = refused + status, same + 1 - status
        house.put(data, edited)                            # an edit comes back, or all stays as it is
        status = notebook2script.main(["--update"])
        files = house.files()
        if status:
            assert status == 1 and files == {NB: data, MODULE: edited}, place
        else:
            doc = json.loads(data)
            doc["cells"][2]["source"] = ["#export\n", "x = 2\n", "y = 3"]
            assert json.loads(files[NB]) == doc and as_nbdev_writes_it(files[NB]), place
            assert b"x = 2\ny = 3" in files[MODULE], place
    assert refused > same > 0
    figure("one damaged byte outside the cells' text, exporter", damaged=len(damaged), refused=refused,
           same_module=same,
           changed_modules=0, tracebacks=0)


def saved(house: House, data: bytes, place: object) -> bool:
    "Does the runner read the notebook and save it whole? Then nothing but outputs is lost; or else all stays."
    house.put(data)
    nb = Notebook(house.nb, "label")
    try:
        nb.read(slow=False, cuda=False)
        for i, cell in enumerate(nb.cells):
            nb.cell_run(i)
            if cell["cell_type"] == "code":
                nb.executed[i] = [{"output_type": "stream", "name": "stdout", "text": "new\n"}], 1
        save(nb)
    except (BadFile, NotSaved) as e:
        assert str(e).isprintable() and house.files() == {NB: data}, (place, str(e))
        return False
    assert sources_of(house.nb.read_bytes()) == sources_of(data), place
    return True


def sources_of(data: bytes) -> list[tuple]:
    return [(c["cell_type"], "".join(c["source"])) for c in json.loads(data.decode("utf-8-sig"))["cells"]]


def all_skipped(data: bytes) -> bool:
    "Has every code cell the tag that keeps it from being run?"
    cells = json.loads(data.decode("utf-8-sig"))["cells"]
    return all("skip-execution" in c.get("metadata", {}).get("tags", ()) for c in cells if c["cell_type"] == "code")


def test_one_damaged_byte_is_read_and_saved_whole_or_refused_by_the_runner(house):
    damaged = damages(random.Random(43), 2, times(10, 100) / 100)
    kept = sum(saved(house, data, place) for place, data in damaged)
    assert 0 < kept < len(damaged)
    figure("one damaged byte outside the cells' text, runner", damaged=len(damaged), refused=len(damaged) - kept,
           saved_whole=kept, tracebacks=0)


scalars = st.none() | st.booleans() | st.integers(-2, 10**20) | st.floats() | words | st.sampled_from(
    ["code", "markdown", "raw", "stream", "error", "#export\nx = 1", "\ud800", "python", "a" * 70])
keys = words | st.sampled_from(["cells", "source", "metadata", "id", "tags", "name", "text", "data"])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


def places(value, path: tuple = ()) -> list[tuple]:
    "The paths to all values in a document."
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in places(v, (*path, key)))]


@examples(100, 1500)
@given(at=st.integers(0, 10_000), value=anything, gone=st.booleans())
def test_any_value_in_any_place_is_taken_or_refused(house, at, value, gone):
    doc = json.loads(sample())
    path = places(doc)[1:][at % (len(places(doc)) - 1)]
    inner = doc
    for key in path[:-1]:
        inner = inner[key]
    if gone:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    data = json.dumps(doc).encode()
    house.put(data)
    assert notebook2script.main([]) in (0, 1), path
    assert house.nb.read_bytes() == data
    if house.module.exists():
        compile(house.module.read_bytes(), MODULE, "exec")
        house.ok("--check")
    saved(house, data, path)
    SEEN["any_value_in_any_place"] += 1


@examples(30, 500)
@given(doc=anything, tail=st.binary(max_size=8))
def test_anything_at_all_is_taken_or_refused(house, doc, tail):
    data = json.dumps(doc).encode() + tail
    house.put(data)
    assert notebook2script.main([]) in (0, 1)
    assert house.files() == {NB: data}
    saved(house, data, "")
    SEEN["anything_at_all"] += 1


# -- by the command line -----------------------------------------------------------------------------------------------

def test_a_sample_by_the_command_line(tmp_path):
    "Where many can go through one process they do; each damaged notebook has a folder and settings of its own."
    rng = random.Random(44)
    damaged = damages(rng, 2, 1)
    for name in ("settings.ini", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "nbs").mkdir()
    chosen = [(place, re.sub(rb'"metadata": \{\}', b'"metadata": {"tags": ["skip-execution"]}', data))
              for place, data in rng.sample(damaged, times(30, 300))]      # no kernels needed
    paths = {tmp_path / "nbs" / f"{n}_x.ipynb": data for n, (_, data) in enumerate(chosen, 100)}
    for path, data in paths.items():
        path.write_bytes(data)
    done = run_tool("run_notebook", "--save", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "" and "itself failed" not in done.stdout
    assert len(re.findall("^(?:passed|failed)  ", done.stdout, re.M)) == len(paths)
    for path, data in paths.items():
        if path.read_bytes() != data:                      # the byte was in the tag: run, it gets its new outputs
            assert not all_skipped(data) and sources_of(path.read_bytes()) == sources_of(data), path
            paths[path] = path.read_bytes()
    done = run_tool("notebook2script", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert not (tmp_path / "exp").exists() and {p: p.read_bytes() for p in paths} == paths
    alone = rng.sample(sorted(paths), times(3, 40))
    for path in alone:
        done = run_tool("notebook2script", path, cwd=tmp_path)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, path
        assert (done.returncode == 0) == (tmp_path / "exp" / f"nb{path.name[:3]}.py").exists(), path
