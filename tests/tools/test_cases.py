"""What users of such tools reported: errors shown and not raised, failures that nobody hears of, lost output.

Each kind with its siblings; one run of the runner meets them all.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_tool
from test_run_notebook import make_nb, outputs, run

GIT = shutil.which("git") or "git"
WIDGETS = "import ipywidgets as w\n"
BAD_REPR = "class R:\n    def {}(self, *a, **k): raise ValueError('bad')\n"

# -- an error that IPython shows is a failure: cells, and the headline
SHOWN = {
    "capture": (["%%capture out\nassert 1 == 2, 'inside'"], "cell 1 (id c0): AssertionError: inside"),
    "capture_usage": (["%%capture\n%nope"], "cell 1 (id c0): UsageError: Line magic function `%nope` not found"),
    "time_magic": (["%time 1/0"], "ZeroDivisionError: division by zero"),
    "timed_cell": (["%%time\nx = 1\n1/0"], "ZeroDivisionError: division by zero"),
    "run_magic": (
        ["open('../_out/run_me.py', 'w').write('x = 1\\nassert 1 == 2, \"script\"')", "%run ../_out/run_me.py"],
        "cell 2 (id c1): AssertionError: script",
    ),
    "run_exits": (
        ["open('../_out/exits.py', 'w').write('raise SystemExit(3)')", "%run ../_out/exits.py"],
        "cell 2 (id c1): SystemExit: 3",
    ),
    "run_cell": (["x = 1", "get_ipython().run_cell('1/0');"], "cell 2 (id c1): ZeroDivisionError: division by zero"),
    "run_cell_syntax": (["get_ipython().run_cell('x = = 1');"], "cell 1 (id c0): SyntaxError: invalid syntax"),
    "run_cell_usage": (["get_ipython().run_cell('%nope');"], "cell 1 (id c0): UsageError: Line magic function"),
    "group": (
        ["get_ipython().run_cell(\"raise ExceptionGroup('some', [ValueError('a')])\");"],
        "cell 1 (id c0): ExceptionGroup: some (1 sub-exception)",
    ),
    "repr_displayed": (
        [BAD_REPR.format("__repr__") + "display(R())\nx = 1"],
        "cell 1 (id c0), line 2: ValueError: bad",
    ),
    "repr": ([BAD_REPR.format("__repr__") + "R()"], "cell 1 (id c0), line 2: ValueError: bad"),
    "repr_html": ([BAD_REPR.format("_repr_html_") + "R()"], "cell 1 (id c0), line 2: ValueError: bad"),
    "repr_png": ([BAD_REPR.format("_repr_png_") + "R()"], "cell 1 (id c0), line 2: ValueError: bad"),
    "repr_mimebundle": ([BAD_REPR.format("_repr_mimebundle_") + "display(R())"], "line 2: ValueError: bad"),
    "ipython_display": ([BAD_REPR.format("_ipython_display_") + "R()"], "line 2: ValueError: bad"),
    "huge_number": (["10**5000"], "cell 1 (id c0): ValueError: Exceeds the limit"),
    "figure": (
        [
            "import matplotlib.pyplot as plt\nfrom matplotlib.ticker import FuncFormatter\nfig, ax = plt.subplots()\n"
            "ax.xaxis.set_major_formatter(FuncFormatter(lambda v, pos: 1/0))"
        ],
        "line 4: ZeroDivisionError: division",
    ),
    "click": (
        [WIDGETS + "b = w.Button()\nb.on_click(lambda b: 1/0)\nb.click()"],
        "ZeroDivisionError: division by zero",
    ),
    "output_widget": (
        [WIDGETS + "with w.Output(): assert False, 'in a block'"],
        "line 2: AssertionError: in a block",
    ),
    "output_capture": (
        [WIDGETS + "o = w.Output()\n@o.capture()\ndef f(): assert False, 'captured'\nf()"],
        "line 4: AssertionError: captured",
    ),
    "output_of_a_function_of_another_cell": (
        [WIDGETS + "o = w.Output()\n@o.capture()\ndef f():\n    assert False, 'captured'", "f()"],
        "cell 2 (id c1): AssertionError: captured",
    ),
    "interact": (
        [WIDGETS + "@w.interact(x=(0, 3))\ndef g(x): assert x > 5, 'in interact'"],
        "AssertionError: in interact",
    ),
    "interactive_output": (
        [WIDGETS + "s = w.IntSlider()\nw.interactive_output(lambda x: 1/x, {'x': s});"],
        "ZeroDivision",
    ),
    "event": (
        ["def e(*a): raise ValueError('in an event')\nget_ipython().events.register('post_execute', e)"],
        "line 1: ValueError: in an event",
    ),
    "pre_run_event": (
        ["def e(*a): raise ValueError('in an event')\nget_ipython().events.register('pre_run_cell', e)", "1"],
        "cell 2 (id c1): ValueError: in an event | ValueError: in an event",
    ),
    "shown_by_hand": (
        ["try: 1/0\nexcept ZeroDivisionError: get_ipython().showtraceback()"],
        "line 1: ZeroDivisionError",
    ),
    "sent_by_hand": (
        [
            "k = get_ipython().kernel\nk.send_response(k.iopub_socket, 'error', {'ename': 'E', 'evalue': 'sent', "
            "'traceback': []})"
        ],
        "cell 1 (id c0): E: sent",
    ),
    "later_callback": (
        [
            "import asyncio\nh = asyncio.get_event_loop().call_later(0.05, lambda: get_ipython().run_cell('1/0'))",
            "import time\nawait asyncio.sleep(0.3)",
        ],
        "ZeroDivisionError: division by zero",
    ),
}

# -- what fails unraised is said; the cells, the note, and whether it is text or a pattern
SAID = {
    "false": (["!false"], "cell 1: `false` ended with status 1"),
    "first_of_two": (["!exit 3\n!true"], "cell 1: `exit 3` ended with status 3"),
    "no_command": (["x = 1", "!no_such_command_zz"], "cell 2: `no_such_command_zz` ended with status 127"),
    "assigned": (
        ["files = !ls no_such_file_zz\nassert 'no_such_file_zz' in files[0]"],
        "cell 1: `ls no_such_file_zz` ended with status ",
    ),
    "twice": (["!!exit 4"], "cell 1: `exit 4` ended with status 4"),
    "system": (["%system exit 5", "get_ipython().system('exit 6')"], "cell 2: `exit 6` ended with status 6"),
    "in_a_function": (
        ["def f(n):\n    !exit {n}\n    out = !exit {n + 1}\nf(7)"],
        "cell 1: `exit 8` ended with status 8",
    ),
    "alias": (["%ls no_such_file_zz"], "no_such_file_zz` ended with status "),
    "pip": (["%pip install --no-index no_such_package_zz"], "no_such_package_zz` ended with status 1"),
    "thread": (
        [
            "import threading, time\ndef f():\n    time.sleep(0.3); print('late'); 1/0\n"
            "t = threading.Thread(target=f)\nt.start()",
            "t.join(); print('after')",
        ],
        "cell 2: a thread ended with ZeroDivisionError: division by zero",
    ),
    "thread_last": (
        ["import threading, time\ndef f():\n    time.sleep(0.5); 1/0\nthreading.Thread(target=f).start()"],
        "cell 1: a thread ended with ZeroDivisionError: division by zero",
    ),
    "task": (
        [
            "import asyncio, gc\nasync def f(): raise KeyError('lost')\nt = asyncio.ensure_future(f())",
            "await asyncio.sleep(0.05)\ndel t\ngc.collect();",
        ],
        "Task exception was never retrieved: KeyError('lost')",
    ),
    "loop_callback": (
        ["import asyncio\nasyncio.get_event_loop().call_later(0.02, lambda: 1/0)\nawait asyncio.sleep(0.2)"],
        "ZeroDivisionError('division by zero')",
    ),
    "destructor": (
        ["class D:\n    def __del__(self): 1/0\nD();"],
        "Python ignored ZeroDivisionError: division by zero",
    ),
}
FINE = {
    "fine": [
        "!true",
        "x = !echo hi\nassert x == ['hi'] and x.n == 'hi'",
        "%%capture out\nprint('kept')",
        "assert 'kept' in out.stdout",
        "from threading import Thread\nimport sys\nt = Thread(target=sys.exit)\nt.start(); t.join()",
    ],
    "tagged": [
        ("%%capture\n1/0", "raises-exception"),
        (BAD_REPR.format("__repr__") + "R()", "raises-exception"),
        ("x = 1\n1/0", "raises-exception"),
        "try: 1/0\nexcept ZeroDivisionError: pass",
    ],
    "caught": [
        "get_ipython().run_cell('x = 1').raise_error()",
        "import traceback\ntry: 1/0\nexcept Exception: print(traceback.format_exc())",
    ],
}
KEPT = {
    "updated": ["h = display('waiting', display_id=True)\nprint('beside')", "h.update('done')"],
    "updated_twice": [
        "display('a', display_id='x');",
        "display('b', display_id='x');",
        "from IPython.display import update_display\nupdate_display('c', display_id='x')",
    ],
    "updated_after_streams": [
        "for i in range(3): print(i, flush=True)\nh = display(0, display_id=True)\nprint('end')",
        "for i in range(5): h.update(i)",
    ],
    "updated_by_a_thread": [
        "import threading\nh = display('waiting', display_id=True)\ngo = threading.Event()\n"
        "t = threading.Thread(target=lambda: (go.wait(), h.update('done')))\nt.start()",
        "go.set(); t.join()",
    ],
    "retina": [
        "%config InlineBackend.figure_format = 'retina'\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "from IPython.display import Image, JSON\nImage(b'\\x89PNG\\r\\n\\x1a\\n' + b'0' * 30, width=5, height=6)",
        "JSON({'a': 1}, expanded=True)",
    ],
}


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    "What the runner said of all of them, and where they are."
    root = tmp_path_factory.mktemp("cases")
    for name in ("settings.ini", "pyproject.toml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "_out").mkdir()
    for name, cells in ({k: v[0] for k, v in (SHOWN | SAID).items()} | FINE | KEPT).items():
        make_nb(root / "nbs" / f"{name}.ipynb", *cells)
    said = run("--save", "--device", "cpu", "--workers", 4, cwd=root, status=1, seconds=900)
    return root, {m[2]: m[0] for m in re.finditer(r"^(passed  |FAILED  )nbs.(\w+)\.ipynb.*", said, re.M)}, said


@pytest.mark.parametrize("name", SHOWN)
def test_an_error_that_is_shown_is_a_failure_with_its_true_headline(met, name):
    line = met[1][name]
    assert line.startswith("FAILED") and any(t in line for t in SHOWN[name][1].split(" | ")), line


@pytest.mark.skipif(os.name != "posix", reason="commands of a POSIX shell")
@pytest.mark.parametrize("name", SAID)
def test_what_fails_unraised_is_said(met, name):
    assert met[1][name].startswith("passed") and SAID[name][1] in met[1][name], met[2]


@pytest.mark.parametrize("name", FINE)
def test_what_is_in_order_passes_without_a_word(met, name):
    assert re.search(r" s  · (saved|outputs unchanged)$", met[1][name]), met[1][name]


def shown(met, name: str) -> list:
    "What each cell of a notebook was saved with."
    nb = met[0] / "nbs" / f"{name}.ipynb"
    cells = len(json.loads(nb.read_text(encoding="utf-8"))["cells"])
    return [[o.get("text") or o["data"]["text/plain"] for o in outputs(nb, i)] for i in range(cells)]


def test_a_display_that_a_later_cell_updates_is_saved_as_it_ends(met):
    assert shown(met, "updated") == [[["'done'"], ["beside\n"]], []]
    assert shown(met, "updated_twice") == [[["'c'"]], [["'c'"]], []]
    assert shown(met, "updated_after_streams") == [[["0\n", "1\n", "2\n"], ["4"], ["end\n"]], []]
    assert shown(met, "updated_by_a_thread") == [[["'done'"]], []]


def test_the_size_of_a_picture_is_kept(met):
    kept = [outputs(met[0] / "nbs" / "retina.ipynb", i)[0]["metadata"] for i in range(3)]
    assert kept[0]["image/png"].keys() == {"width", "height"} and kept[1] == {"image/png": {"height": 6, "width": 5}}
    assert kept[2] == {"application/json": {"expanded": True, "root": "root"}}


def test_what_a_thread_says_late_is_in_the_cell_that_started_it(met):
    "Or in the one that ran then, with kernels that don't know threads."
    text = "".join(str(t) for cell in shown(met, "thread") for t in cell)
    assert "late" in text and "Exception in thread" in text and "ZeroDivisionError" in text and "after" in text


# -- names, marks: see also test_notebook2script.py -------------------------------------------------------------------


def test_a_forgotten_export_is_named(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    nbs = tmp_path / "nbs"
    make_nb(
        nbs / "02_a.ipynb", "#export\nimport math\ndef f(): pass", "x = f()", "def g():\n    return 1", "%time\ng()"
    )
    make_nb(
        nbs / "03_b.ipynb", "#export\nfrom exp.nb02 import f, math", "#export\nif f:\n    from exp.nb02 import g as h"
    )
    done = run_tool("notebook2script", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        (
            "nbs/03_b.ipynb: cell 2 (id c1), line 3: import of g, which chapter 02 does not export: is #export missing "
            "in its cell 3 (id c2)?\n1 fault: nothing was written\n"
        ),
    )
    make_nb(nbs / "03_b.ipynb", "#export\nfrom exp.nb02 import f", "from exp.nb02 import f, x, unknown\nx")
    done = run_tool("notebook2script", cwd=tmp_path)  # a test may try what it likes
    assert (done.returncode, done.stderr) == (
        0,
        (
            "warning: nbs/03_b.ipynb: cell 2 (id c1), line 1: import of x, which chapter 02 does not export: is "
            "#export missing in its cell 2 (id c1)?\n"
        ),
    )


# -- git --------------------------------------------------------------------------------------------------------------


def git(folder: Path, *args: str, status: int | None = 0) -> str:
    done = subprocess.run(
        [GIT, "-c", "user.name=x", "-c", "user.email=x", *args],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert status is None or done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    "A checkout with a door, set up as `make` does it, in a copy of the tools."
    for folder in ("exporter", "runner"):
        (tmp_path / "tools" / folder).mkdir(parents=True)
        for f in (ROOT / "tools" / folder).glob("*.py"):
            (tmp_path / "tools" / folder / f.name).write_bytes(f.read_bytes())
    for f in (ROOT / "tools").glob("*.py"):
        (tmp_path / "tools" / f.name).write_bytes(f.read_bytes())
    (tmp_path / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    (tmp_path / ".gitignore").write_text("__pycache__\n.gitconfig\n")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\ndoor_path = groundup\n")
    (tmp_path / "nbs").mkdir()
    git(tmp_path, "init", "-qb", "main")
    code = "import sys; sys.path.insert(0, 'tools'); import hooks; sys.prefix = '_env'; hooks.install()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (tmp_path / "_env" / "etc" / "jupyter" / "jupyter_server_config.py").unlink()
    assert not list((tmp_path / ".git" / "hooks").glob("post-*[!e]"))  # `make clean` has none to remove
    return tmp_path


CELLS = [
    "#export\nimport math\n\ndef a(): return 1",
    "a()",
    "#export\ndef b(): return 1",
    "#export\ndef c(): return 1",
]


def commit(folder: Path, *cells: str) -> None:
    make_nb(folder / "nbs" / "02_x.ipynb", *cells)
    subprocess.run([sys.executable, "tools/notebook2script.py"], cwd=folder, check=True, capture_output=True)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")


def changed(cells: list[str], at: int, source: str) -> list[str]:
    return [source if i == at else c for i, c in enumerate(cells)]


OURS, THEIRS = (
    "#export\ndef a(): return 'ours'\n\ndef ours(): pass",
    "#export\ndef c(): return 'theirs'\n\nTHEIRS = 1",
)


@pytest.mark.parametrize("how", ["merge", "rebase", "cherry-pick"])
def test_branches_that_change_different_cells_of_a_chapter_merge(checkout, how):
    commit(checkout, *CELLS)
    git(checkout, "checkout", "-qb", "theirs")
    commit(checkout, *changed(CELLS, 3, THEIRS))
    git(checkout, "checkout", "-q", "main")
    commit(checkout, *changed(CELLS, 0, OURS))
    git(
        checkout,
        *{"merge": ["merge", "theirs"], "rebase": ["rebase", "theirs"], "cherry-pick": ["cherry-pick", "theirs"]}[
            how
        ],
    )
    assert git(checkout, "status", "--porcelain") == ""
    done = subprocess.run(
        [sys.executable, "tools/notebook2script.py", "--check"], cwd=checkout, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    module = (checkout / "exp" / "nb02.py").read_text()
    assert '__all__ = ["a", "ours", "b", "c", "THEIRS"]' in module and "'ours'" in module and "'theirs'" in module
    assert '"ours": "nb02"' in (checkout / "groundup" / "__init__.py").read_text()


def test_branches_that_change_the_same_cell_are_told_the_cure(checkout):
    commit(checkout, *CELLS)
    git(checkout, "checkout", "-qb", "theirs")
    commit(checkout, *changed(CELLS, 0, THEIRS))
    git(checkout, "checkout", "-q", "main")
    commit(checkout, *changed(CELLS, 0, OURS))
    said = git(checkout, "merge", "theirs", status=1)
    assert "exp/nb02.py is generated: settle its notebook first, then `make export` writes it" in said
    make_nb(checkout / "nbs" / "02_x.ipynb", *changed(CELLS, 0, "#export\ndef a(): return 'both'"))
    assert run_tool("notebook2script", cwd=checkout).returncode == 0  # what was left is no hand edit
    assert "'both'" in (checkout / "exp" / "nb02.py").read_text()


# -- Jupyter ----------------------------------------------------------------------------------------------------------


def test_jupyter_cleans_a_notebook_as_it_saves_it(tmp_path, monkeypatch):
    "The working folder is not the one that Jupyter shows, and the file need not exist yet."
    from types import SimpleNamespace

    import hooks

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    c = SimpleNamespace(ContentsManager=SimpleNamespace())
    exec(hooks.JUPYTER, {"c": c})
    nb = make_nb(tmp_path / "x.ipynb", ("1", "hide-input"), widgets={"a": 1})
    doc = json.loads(nb.read_text())
    doc["cells"][0] |= {"execution_count": 7, "metadata": {"tags": ["hide-input"], "scrolled": True}}
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    nb.unlink()
    c.ContentsManager.pre_save_hook(
        model={"type": "notebook", "content": doc},
        path="nbs/x.ipynb",
        contents_manager=SimpleNamespace(root_dir=str(tmp_path)),
    )
    assert doc["cells"][0]["execution_count"] is None and doc["cells"][0]["metadata"] == {"tags": ["hide-input"]}
    assert set(doc["metadata"]) == {"kernelspec"}
    c.ContentsManager.pre_save_hook(model={"type": "file", "content": "x"}, path="x", contents_manager=None)


# -- which notebooks --------------------------------------------------------------------------------------------------


def test_a_chapter_and_those_that_import_it(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    for name, source in {
        "05_a": "1",
        "05a_b": "from exp.nb05 import x",
        "06_c": "import exp.nb05a",
        "07_d": "from exp.nb06 import y",
        "08_e": "from exp import nb07",
        "09_f": "from exp.nb05b import z",
        "10_g": "1",
        "11H_h": "import exp.nb01, exp.nb10",
        "12_i": "import exp.nb11h",
    }.items():
        make_nb(tmp_path / "nbs" / f"{name}.ipynb", f"#slow\n{source}")
    if os.name == "posix":
        os.mkfifo(tmp_path / "nbs" / "waits.ipynb")        # nobody will write into it
        (tmp_path / "nbs" / "gone.ipynb").symlink_to("nowhere.ipynb")
    for name, ran in {
        "nbs/05a_b.ipynb": "05a_b 06_c 07_d 08_e",
        "05_a": "05_a 05a_b 06_c 07_d 08_e",
        "10_g": "10_g 11H_h 12_i",
        "11H_h": "11H_h 12_i",
    }.items():
        said = run(name, "--importers", cwd=tmp_path, status=0)
        assert re.findall(r"^passed +nbs.(\w+)", said, re.M) == ran.split()
    assert len(re.findall("^passed", run("05_a", cwd=tmp_path, status=0), re.M)) == 1


def test_what_is_made_of_notebooks_has_a_name_of_its_own():
    from runner.crew import names_for
    paths = "a/nbs/01_x.ipynb", "b/nbs/01_x.ipynb", "c/nbs_01_x.ipynb", "d/NBS_01_x.ipynb", "d/y.ipynb"
    names = names_for(list(map(Path, paths))).values()
    assert list(names) == ["nbs_01_x", "nbs_01_x_2", "nbs_01_x_3", "NBS_01_x_4", "y"]


def test_a_notebook_is_run_once_however_it_is_spelled(tmp_path):
    make_nb(tmp_path / "nbs" / "01_a.ipynb", "1")
    said = run("nbs/01_a.ipynb", "nbs/../nbs/01_a.ipynb", cwd=tmp_path, status=0)
    assert len(re.findall("^passed", said, re.M)) == 1


def test_no_limit_for_a_notebook_stays_none_with_one_for_a_cell(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nnotebook_timeout = 0\n")
    make_nb(tmp_path / "nbs" / "01_a.ipynb", *["import time; time.sleep(0.6)"]*3)
    assert "1.0 s a cell, no limit a notebook" in run("--timeout", "1", cwd=tmp_path, status=0)


def test_settings_elsewhere_that_are_damaged_are_named(tmp_path):
    make_nb(tmp_path / "other" / "x.ipynb", "1")
    (tmp_path / "other" / "settings.ini").write_text("no section")
    said = run("other/x.ipynb", cwd=tmp_path, status=1)
    assert "settings.ini" in said and "the runner itself" not in said


@pytest.mark.skipif(os.name != "posix", reason="SIGHUP is POSIX's")
def test_a_run_goes_on_when_its_terminal_is_closed_as_nohup_asked(tmp_path):
    make_nb(tmp_path / "x.ipynb", "import os, signal, time\nos.kill(int(os.environ['RUNNER']), signal.SIGHUP)\n"
            "time.sleep(1)")
    code = "import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" \
           "os.environ['RUNNER'] = str(os.getpid())\n" \
           f"os.execv(sys.executable, [sys.executable, {str(ROOT / 'tools' / 'run_notebook.py')!r}, 'x.ipynb'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_device_is_looked_for_where_it_may_be(monkeypatch):
    "`--device cuda` and GROUNDUP_DEVICE take torch's word, be it CUDA, ROCm or a rehearsal; `auto` needs a driver."
    from runner import find

    asked, there = [], set()
    yes = subprocess.CompletedProcess([], 0, b"True\n")
    monkeypatch.setattr(find.subprocess, "run", lambda *a, **k: asked.append(a) or yes)
    monkeypatch.setattr(find.os.path, "exists", lambda p: p in there)
    monkeypatch.setattr(find.shutil, "which", lambda name: None)
    monkeypatch.delenv("GROUNDUP_DEVICE", raising=False)
    assert not find.has_gpu("cpu") and not find.has_gpu("auto") and not asked
    assert find.has_gpu("cuda")
    for driver in "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg":  # /dev/kfd is AMD's
        there.add(driver)
        assert find.has_gpu("auto")
        there.clear()
    monkeypatch.setenv("GROUNDUP_DEVICE", "cuda:0")
    assert find.has_gpu("auto") and not find.has_gpu("cpu")
    monkeypatch.setenv("GROUNDUP_DEVICE", "mps")
    there.add("/dev/kfd")
    assert not find.has_gpu("auto")


# -- make -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_without_a_rehearsal_it_is_skipped():
    make = [str(shutil.which("make")), "-o", ".venv/.ready", "test-rehearsal", "REHEARSAL=/nowhere"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "\nskipped: no rehearsal in /nowhere" in f"\n{done.stdout}", done


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    "goal, does",
    [
        (["save", "NB=04_callbacks"], "tools/run_notebook.py nbs/04_callbacks.ipynb --save"),
        (["save", "NB=nbs/04_callbacks.ipynb", "ARGS=--slow"], "nbs/04_callbacks.ipynb --save --slow"),
        (["test", "NB=04_callbacks"], "tools/run_notebook.py nbs/04_callbacks.ipynb --importers"),
        (["test"], "tools/run_notebook.py --durations 10"),
        (["test"], "-m pytest -n 2 --dist loadfile"),
        (["lab"], "jupyter-lab --allow-root nbs"),
        (["clean"], "git config --unset include.path"),
    ],
)
def test_make(goal, does):
    said = subprocess.run([str(shutil.which("make")), "-n", *goal], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0 and does in said.stdout, said
