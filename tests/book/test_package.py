"""The package as a whole: what it depends on, what a wheel holds, that every module stands alone."""
import ast
import csv
import json
import re
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(p.stem for p in (ROOT / "exp").glob("nb*.py"))


def settings() -> dict:
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(cfg["DEFAULT"])


def requirement_names(*keys: str) -> set[str]:
    return {re.split(r"[<>=!~\[]", r)[0].lower() for k in keys for r in settings()[k].split()}


def imported(path: Path) -> set[str]:
    "Top-level names of all packages a module imports, inside functions too."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_runtime_requirements_are_what_exp_imports():
    packages = set().union(*(imported(p) for p in (ROOT / "exp").glob("*.py"))) - sys.stdlib_module_names - {"exp"}
    names = packages_distributions()
    assert {names[p][0].lower() for p in packages} == requirement_names("requirements")


def test_every_requirement_is_pinned():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    keys = ("requirements", "tools_requirements", "dev_requirements", "lab_requirements")
    missing = [n for n in requirement_names(*keys) if not re.search(rf"^{re.escape(n)}==\S+$", pins, re.M)]
    assert not missing, f"no exact version in constraints.txt for {missing}"


def test_modules_import_alone_and_export_only_their_own_names():
    "Every module in one fresh interpreter each: `__all__` resolves, is defined there, and nothing is printed."
    code = ("import sys, importlib, inspect; m = importlib.import_module(sys.argv[1]); "
            "assert m.__all__ and all(hasattr(m, n) for n in m.__all__); "
            "own = lambda o: not inspect.isroutine(o) and not inspect.isclass(o) or o.__module__ == m.__name__; "
            "foreign = [n for n in m.__all__ if not own(getattr(m, n))]; "
            "assert not foreign, foreign")
    procs = {m: subprocess.Popen([sys.executable, "-W", "error", "-c", code, f"exp.{m}"], cwd=ROOT, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for m in MODULES}
    faults = {m: out for m, p in procs.items() if (out := p.communicate()[0]) or p.returncode}
    assert MODULES and not faults, faults


def test_importing_the_package_imports_no_chapter():
    code = "import exp, sys; assert not [m for m in sys.modules if m.startswith(('exp.', 'torch'))]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel of a copy of the sources, so that building leaves nothing behind here."
    src, dist = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("dist")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (src / name).write_bytes((ROOT / name).read_bytes())
    (src / "exp").mkdir()
    for p in (ROOT / "exp").glob("*.py"):
        (src / "exp" / p.name).write_bytes(p.read_bytes())
    (src / "nbs").mkdir()
    (src / "nbs" / "not_a_module.py").write_text("raise SystemExit\n")
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", dist, src],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(dist.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    code = {n for n in names if ".dist-info/" not in n}
    assert code == {f"exp/{p.name}" for p in (ROOT / "exp").glob("*.py")}
    assert wheel.name.startswith(f"{settings()['name']}-{settings()['version']}-")


def test_wheel_metadata_is_settings_ini(wheel):
    with zipfile.ZipFile(wheel) as z:
        meta = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
    s = settings()
    assert f"License-Expression: {s['license']}" in meta
    assert f"Requires-Python: >={s['min_python']}" in meta
    runtime = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", meta, re.M)
    assert {r.lower() for r in runtime} == requirement_names("requirements")


def test_wheel_installs_into_a_clean_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel],
                   check=True, cwd=tmp_path)
    code = "import exp.nb00 as m; m.test_eq([1, 2], (1, 2)); print(m.__file__)"
    out = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "env").resolve() in Path(out.strip()).resolve().parents


def test_readme_pictures_are_what_the_notebooks_show():
    done = subprocess.run([sys.executable, "docs/pictures.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + "\nrun: python docs/pictures.py"


def imported_names(code: str) -> set[str]:
    "What the import statements in `code` name: `torch.nn` for `from torch import nn`."
    found = re.findall(r"^import ([\w.]+)", code, re.M)
    for module, names in re.findall(r"^from ([\w.]+) import ([\w, ]+)", code, re.M):
        found += [f"{module}.{name.strip()}" for name in names.split(",")]
    return set(found)


def test_readme_code_is_cells_that_run():
    "The README's examples are, to the letter, cells of chapters 05b and 10, so they run whenever the notebooks do."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [b.strip() for b in re.findall(r"```python\n(.*?)```", readme, re.S)]
    for name, block in zip(("05b_early_stopping", "10_activations"), blocks, strict=True):
        cells = json.loads((ROOT / f"nbs/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells]
        imports, rest = block.split("\n\n", 1)            # the library's imports may stand higher up in the chapter
        higher_up = rest in code and imported_names(imports) <= imported_names("\n".join(code))
        assert block in code or higher_up, f"not a cell of {name}: {block}"


def test_readme_accuracies_are_those_of_the_logs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+)% \|.*\((benchmarks/results/\w+\.csv)\) \|$", readme, re.M)
    assert len(rows) == 4
    for epochs, accuracy, file in rows:
        with (ROOT / file).open(encoding="utf-8") as f:
            log = [r for r in csv.DictReader(f) if r["epoch"] == epochs and not r["model"].endswith("training")]
        assert f"{accuracy}%" in [f"{float(r['accuracy']):.2%}" for r in log], file
