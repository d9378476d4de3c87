"""The package as a whole: what it depends on, what a wheel holds, that every module stands alone, and the door."""
import ast
import csv
import os
import re
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from figures import times

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(p.stem for p in (ROOT / "exp").glob("nb*.py"))
PACKAGED = {f"{folder}/{p.name}" for folder in ("exp", "groundup") for p in (ROOT / folder).iterdir() if p.is_file()}


def settings() -> dict:
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(cfg["DEFAULT"])


def requirement_names(*keys: str) -> set[str]:
    return {re.split(r"[<>=!~\[]", r)[0].lower() for k in keys for r in settings()[k].split()}


def imported(path: Path) -> set[str]:
    "Top-level names of all packages a module imports, inside functions too."
    return named(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def named(nodes) -> set[str]:
    "The packages that the import statements among `nodes` name."
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_runtime_requirements_are_what_exp_imports():
    modules = [*(ROOT / "exp").glob("*.py"), *(ROOT / "groundup").glob("*.py")]
    packages = set().union(*map(imported, modules)) - sys.stdlib_module_names - {"exp"}
    names, extra = packages_distributions(), requirement_names("scale_requirements", "data_requirements")
    found = {names[p][0].lower() for p in packages}
    assert found == requirement_names("requirements") | extra
    at_once = set().union(*(named(ast.parse(p.read_text(encoding="utf-8")).body) for p in modules))
    assert not {names[p][0].lower() for p in at_once if p in names} & extra, "an extra is imported where it is used"


@pytest.mark.parametrize("line", settings()["console_scripts"].split())
def test_a_command_is_the_function_of_its_name(line):
    command, place = line.split("=")
    module, function = place.split(":")
    assert function == command.replace("-", "_") and callable(getattr(import_module(module), function))


def test_every_requirement_is_pinned():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    keys = [k for k in settings() if k.endswith("requirements")]
    missing = [n for n in requirement_names(*keys) if not re.search(rf"^{re.escape(n)}==\S+$", pins, re.M)]
    assert not missing, f"no exact version in constraints.txt for {missing}"


ALONE = """
import gc, importlib, inspect, os, sys, warnings
import torch, matplotlib.pyplot

def check(name):
    m = importlib.import_module(f"exp.{name}")
    assert m.__all__ and all(hasattr(m, n) for n in m.__all__)
    own = lambda o: not inspect.isroutine(o) and not inspect.isclass(o) or o.__module__ == m.__name__
    foreign = [n for n in m.__all__ if not own(getattr(m, n))]
    assert not foreign, foreign

gc.freeze()
for name in sys.argv[1:]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = len(sys.argv) > 2 and os.fork()
    if not child:
        check(name)
        sys.stdout.flush()
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(f"exp.{name}: status {status}", flush=True)
"""


def test_modules_import_alone_and_export_only_their_own_names():
    """Every module in one fresh interpreter each: `__all__` resolves, is defined there, and nothing is printed.

    Where Linux lends a fork, the interpreters share torch and pyplot, whose import takes seconds, and nothing else."""
    groups = [MODULES] if sys.platform == "linux" else [[m] for m in MODULES]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}       # threads don't survive a fork
    for group in groups:
        done = subprocess.run([sys.executable, "-W", "error", "-c", ALONE, *group], cwd=ROOT, env=env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert (done.returncode, done.stdout) == (0, ""), group
    assert MODULES


def test_importing_the_package_imports_no_chapter():
    code = "import exp, sys; assert not [m for m in sys.modules if m.startswith(('exp.', 'torch'))]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# -- the door

def python(code: str, cwd: Path = ROOT, *flags: str) -> subprocess.CompletedProcess:
    "Runs `code` where this checkout comes after the working folder on Python's path, as an installed package does."
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""}
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)


def test_door_opens_on_every_name():
    "Each is the object of the module that the door says, a star import and tab completion have them all."
    done = python("import groundup as gu, importlib\n"
                  "assert set(gu.__all__) < set(dir(gu))\n"
                  "for name, module in gu._module_of.items():\n"
                  "    assert getattr(gu, name) is getattr(importlib.import_module(f'exp.{module}'), name), name\n"
                  "space = {}\n"
                  "exec('from groundup import *', space)\n"
                  "assert space.keys() >= set(gu.__all__) > {'TrainLearner', 'get_images'}\n"
                  "assert space['Learner'].__module__ == 'exp.nb09' and 'Runner' not in space")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_door_and_stub_name_the_same():
    import groundup as gu
    stub = ast.parse((ROOT / "groundup" / "__init__.pyi").read_text(encoding="utf-8"))
    named = {a.asname: s.module for s in stub.body if isinstance(s, ast.ImportFrom) for a in s.names}
    assert named == {name: f"exp.{module}" for name, module in gu._module_of.items()}


@pytest.mark.parametrize("page", ["README.md", "docs/use_it.md"])
def test_builders_are_shown_the_way_to_the_index_of_names(page):
    "The stub says of every public name which chapter builds it; in the web book its place is taken by the reference."
    [link] = re.findall(r"\[index of names\]\((\S+)\)", (ROOT / page).read_text(encoding="utf-8").replace("\n", " "))
    assert ((ROOT / page).parent / link).resolve() == ROOT / "groundup" / "__init__.pyi"


def test_door_opens_at_once_and_loads_what_is_asked_for():
    "At most 50 ms, without torch; then the module of the name."
    said = [python("import groundup", ROOT, "-X", "importtime").stderr for _ in range(3)]
    took = [int(re.search(r"\| +(\d+) \| groundup$", s, re.M)[1]) for s in said]                  # microseconds
    assert min(took) <= 50_000, took
    done = python("import sys, groundup as gu\n"
                  "assert not [m for m in sys.modules if m.split('.')[0] in ('exp', 'torch', 'numpy', 'difflib')]\n"
                  "gu.test_eq(1, 1)\n"
                  "print(*(m for m in sys.modules if m.startswith('exp.')))")
    assert (done.returncode, done.stdout) == (0, "exp.nb00\n"), done.stderr


def test_door_says_what_was_meant():
    done = python("import groundup as gu\ngu.TranLearner")
    assert done.stderr.splitlines()[-1] == ("AttributeError: module 'groundup' has no attribute 'TranLearner': did you "
                                            "mean 'TrainLearner'?")


def test_door_names_a_file_that_hides_the_chapters(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "__init__.py").write_text("raise SystemExit('it ran')\n")
    done = python("import groundup as gu\ngu.test_eq", tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'exp' / '__init__.py'} hides the package {ROOT / 'exp'}"), done
    assert "rename it" in last


# -- the wheel

@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel of a copy of the sources, made as for a release: sdist first, then the wheel from it."
    src, dist = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("dist")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        (src / name).write_bytes((ROOT / name).read_bytes())
    for file in PACKAGED:
        (src / file).parent.mkdir(exist_ok=True)
        (src / file).write_bytes((ROOT / file).read_bytes())
    (src / "nbs").mkdir()
    (src / "nbs" / "not_a_module.py").write_text("raise SystemExit\n")
    done = subprocess.run([sys.executable, "-m", "build", "--outdir", dist, src],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(dist.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    code = {n for n in names if ".dist-info/" not in n}
    assert code == PACKAGED and code > {"exp/py.typed", "groundup/py.typed", "groundup/__init__.pyi"}
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
    code = "import groundup, sys; groundup.test_eq([1, 2], (1, 2)); print(groundup.__version__, groundup.__file__, " \
           "sys.modules['exp.nb00'].__file__)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    version, *where = out.split()
    assert version == settings()["version"]
    assert all((tmp_path / "env").resolve() in Path(p).resolve().parents for p in where)


def test_readme_pictures_are_what_the_notebooks_show():
    done = subprocess.run([sys.executable, "docs/pictures.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + "\nrun: python docs/pictures.py"


@pytest.mark.torture
def test_readme_code_runs(tmp_path):
    "Each example of the README is a program: it is run on the images that are at hand, in the quick form on fewer."
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("n_train=10_000", times("n_train=1_000",
                                                                                              "n_train=10_000"))
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert blocks and all("import groundup as gu" in b for b in blocks)
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    for code in blocks:
        done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], cwd=tmp_path, env=env,
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"


def test_readme_accuracies_are_those_of_the_logs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+)% \|.*\((records/\w+\.csv)\) \|$", readme, re.M)
    assert len(rows) == 4
    for epochs, accuracy, file in rows:
        with (ROOT / file).open(encoding="utf-8") as f:
            log = [r for r in csv.DictReader(f) if r["epoch"] == epochs and not r["model"].endswith("training")]
        assert f"{accuracy}%" in [f"{float(r['accuracy']):.2%}" for r in log], file
