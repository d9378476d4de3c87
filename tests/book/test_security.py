"""Nothing that is read can run code, no name leads out of its folder, and CI may do no more than it needs."""
import ast
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_nb, run_tool

pytestmark = pytest.mark.torture

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for folder in ("exp", "groundup", "tools", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
NOTEBOOKS = sorted(ROOT.glob("nbs/*.ipynb"))
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
LOADS = {"load", "loads", "Unpickler", "read_pickle"}


def trees(path: Path):
    "The code in a file; of a notebook that of each cell that Python can read (magics are not Python)."
    if path.suffix == ".py":
        yield ast.parse(path.read_text(encoding="utf-8"))
        return
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            source = re.sub(r"^(\s*)[%!].*", r"\1pass", "".join(cell["source"]), flags=re.M)
            try:
                yield ast.parse(source)
            except SyntaxError:
                assert "raises-exception" in cell["metadata"].get("tags", []), f"{path.name} #{cell['id']}"


def unsafe_reads(tree: ast.AST) -> list[str]:
    "Calls that may read a pickle: of the modules which do, `torch.load` without its guard, NumPy asked to."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):                      # by which they would have other names
            base = getattr(node, "module", None)
            if any(a.asname and a.name in {*PICKLES, "torch"} or base in {*PICKLES, "torch"} and a.name in LOADS
                   for a in node.names):
                found.append(ast.unparse(node))
        if not isinstance(node, ast.Call):
            continue
        call, keys = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        base, _, name = call.rpartition(".")
        if (base in PICKLES and name in LOADS) or name == "read_pickle" or keys.get("allow_pickle") == "True":
            found.append(ast.unparse(node))
        if call.endswith("torch.load") and keys.get("weights_only") != "True":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES + NOTEBOOKS, ids=lambda p: p.name)
def test_no_pickle_is_read(path):
    found = [f for tree in trees(path) for f in unsafe_reads(tree)]
    if path.suffix == ".ipynb":                            # a copy through a pickle: of an object made in that cell
        found = [f for f in found if not re.fullmatch(r"pickle\.loads\(pickle\.dumps\(\w+\)\)", f)]
    assert found == []


@pytest.mark.parametrize("line", ["pickle.load(f)", "from pickle import loads", "import pickle as p",
                                  "from torch import load", "torch.load('m.pt')", "torch.load(f, weights_only=False)",
                                  "np.load(f, allow_pickle=True)", "pd.read_pickle(f)", "joblib.load(f)"])
def test_the_search_finds_what_it_looks_for(line):
    assert unsafe_reads(ast.parse(line)) == [line]


class Bomb:
    "Unpickled, it makes a file."

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_malicious_model_file_runs_nothing(tmp_path):
    from exp.nb13b import load_model, read_model, save_model
    from exp.nb13c import pooled_resnet
    from exp.nb14 import train
    mark, good, net = tmp_path / "ran", tmp_path / "good.pt", pooled_resnet((2, 4))
    save_model(net, good, {"builder": "pooled_resnet", "kwargs": {"nfs": [2, 4]}})
    whole = dict(torch.load(good, weights_only=True))
    evil = {"whole": Bomb(mark), "config": whole | {"config": Bomb(mark)}, "weights": whole | {"weights": Bomb(mark)},
            "a weight": whole | {"weights": whole["weights"] | {"0.0.weight": Bomb(mark)}},
            "beside": whole | {"extra": Bomb(mark)}}
    for what, saved in evil.items():
        for how in (lambda s, p: torch.save(s, p), lambda s, p: p.write_bytes(pickle.dumps(s))):
            how(saved, path := tmp_path / "evil.pt")
            for read in read_model, load_model, lambda p: train(weights=p, quiet=True):
                with pytest.raises(ValueError, match="no whole saved model"):
                    read(path)
            assert not mark.exists(), what
    pickle.loads(pickle.dumps(Bomb(mark)))                # and it would have
    assert mark.exists()


def test_a_model_file_names_only_builders(tmp_path):
    from exp.nb13b import load_model, save_model
    from exp.nb13c import pooled_resnet
    config = {"builder": "pooled_resnet", "kwargs": {"nfs": [2, 4]}}
    path = save_model(pooled_resnet((2, 4)), tmp_path / "m.pt", config)
    saved = torch.load(path, weights_only=True)
    for name in "os.system", "__import__", "exp.nb14.train", "save_model", "":
        torch.save(saved | {"config": json.dumps({"builder": name, "kwargs": {}})}, path)
        with pytest.raises(ValueError, match="no builder"):
            load_model(path)


@pytest.fixture
def house(tmp_path):
    "A project in a folder of its own, with precious files around it."
    for precious in "keep.py", "keep.html", "keep.ipynb":
        (tmp_path / precious).write_text("precious\n")
    inside = tmp_path / "house"
    (inside / "nbs").mkdir(parents=True)
    (inside / "settings.ini").write_text("[DEFAULT]\nlib_path = exp\nnbs_path = nbs\nout_path = _out\n")
    return inside


def files(folder: Path) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["01_..", "..", "01_..%2fkeep", "01_a\\..\\..\\keep", "....", "-keep", "01_~",
                                  "01_$HOME"])
def test_no_name_of_a_notebook_leads_out(house, name):
    if sys.platform == "win32" and "\\" in name:
        pytest.skip("a backslash can't be in a name here")
    make_nb(house / "nbs" / f"{name}.ipynb", "#export\na = 1", "print(a)")
    before = {k: v for k, v in files(house.parent).items() if not k.startswith("house/exp")}
    run_tool("notebook2script", cwd=house)
    run_tool("run_notebook", "--html", "_out/pages", cwd=house)
    after = files(house.parent)
    new = {k for k in after if k not in before}
    assert {k: after.get(k) for k in before} == before and all(k.startswith(("house/exp/", "house/_out/")) for k in new)
    assert name[0] == "." or any(k.startswith("house/_out/pages/") for k in new)            # hidden ones are not run


@pytest.mark.parametrize("block", ["nbs/../../keep.ipynb", "/etc/passwd", "nbs/../keep.ipynb", "..\\keep.ipynb"])
def test_no_module_sends_update_elsewhere(house, block):
    make_nb(house / "nbs" / "01_a.ipynb", "#export\na = 1")
    assert run_tool("notebook2script", cwd=house).returncode == 0
    module = house / "exp" / "nb01.py"
    module.write_text(module.read_text().replace("nbs/01_a.ipynb", block).replace("a = 1", "a = 2"))
    before = files(house.parent)
    done = run_tool("notebook2script", "--update", cwd=house)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert files(house.parent) == before


@pytest.mark.parametrize("name", ["../mnist", "/etc", "mnist/../..", "mnist\0", "", "MNIST/", "a" * 5000])
def test_no_name_of_a_data_set_leads_out(name):
    from exp.nb00c import get_images
    with pytest.raises(ValueError, match="unknown image set"):
        get_images(name)


def test_the_report_escapes_what_it_shows(tmp_path):
    "The showcase's page is HTML: names and messages with markup in them stay text."
    make_nb(tmp_path / "nbs" / "01_a.ipynb", "md:# <script>alert(1)</script>", "print('<script>alert(2)</script>')")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_path = exp\nnbs_path = nbs\nout_path = _out\n")
    assert run_tool("run_notebook", "--html", "_out", cwd=tmp_path).returncode == 0
    page = (tmp_path / "_out" / "01_a.html").read_text(encoding="utf-8")
    assert "<script>alert(2)" not in page and "&lt;script&gt;alert(2)" in page


# -- CI

WRITES = {"book": {"pages", "id-token"}, "release": {"id-token", "contents"}}     # a job each, for what they publish
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_do_no_more_than_they_need(path):
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses:\s*(\S+)", text)
    assert uses and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", u) for u in uses), uses
    assert re.search(r"^permissions: \{contents: read\}", text, re.M)
    assert set(re.findall(r"([\w-]+):\s*write\b", text)) == WRITES.get(path.stem, set())
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")
    assert not re.search(r"pull_request_target|workflow_run|secrets\.|\$\{\{\s*github\.(event|head_ref)", text)


def test_ci_audits_the_pins_and_ruff_checks_security():
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.search(r"pip-audit .*-r constraints\.txt", ci)
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "-q", "--show-settings"], cwd=ROOT, text=True,
                          capture_output=True)
    assert "subprocess-popen-with-shell-equals-true (S602)" in done.stdout
    assert "suspicious-pickle-usage (S301)" in done.stdout
