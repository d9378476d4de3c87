"""The runner under every cause of failure: what it says, what it leaves, what it never touches."""
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import common
import psutil
import pytest
import zmq.asyncio
from conftest import ROOT
from figures import times
from jupyter_client.session import Session
from runner.execute import Channel
from runner.notebook import Notebook
from runner.save import NotSaved, save, settle

RUNNER = ROOT / "tools" / "run_notebook.py"

posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX's")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can follow a daemonised process")


def make_nb(path: Path, *cells, **metadata) -> Path:
    "A notebook; a cell is source, `(source, tag, …)`, or markdown when it begins with `md:`."
    made = []
    for i, c in enumerate(cells):
        source, *tags = c if isinstance(c, tuple) else (c,)
        cell = {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": tags} if tags else {}, "outputs": [],
                "execution_count": None, "source": source.splitlines(True)}
        if source.startswith("md:"):
            cell = {"cell_type": "markdown", "id": f"c{i}", "metadata": {}, "source": source[3:].splitlines(True)}
        made.append(cell)
    spec = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    doc = {"cells": made, "metadata": spec | metadata, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(doc, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return path


def environment(**env) -> dict:
    return {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "GROUNDUP_DEVICE")} | env


def run(*args, cwd: Path, status: int | None = None, seconds: int = 120, **env) -> str:
    "The runner's output; its exit status is checked when `status` is given."
    done = subprocess.run([sys.executable, str(RUNNER), *map(str, args)], cwd=cwd, env=environment(**env),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, encoding="utf-8")
    assert status is None or done.returncode == status, done.stdout
    ours = r'File ".*(run_notebook|runner[/\\]\w+)\.py"'
    assert not re.search(ours, done.stdout), done.stdout   # no traceback
    return done.stdout


def outputs(path: Path, cell: int) -> list:
    return json.loads(path.read_text(encoding="utf-8"))["cells"][cell]["outputs"]


def marked(mark: str) -> list[psutil.Process]:
    "The processes that have `mark` in their environment, and are not zombies."
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("RUNNER_TEST") == mark and p.status() != psutil.STATUS_ZOMBIE:
                found.append(p)
        except psutil.Error:
            pass
    return found


def words(p: psutil.Process) -> list[str]:
    "Its command line; none when it has just ended."
    try:
        return p.cmdline()
    except psutil.Error:
        return []


def left_in(folder: str | Path) -> list[str]:
    """What lies in a folder of temporary files, but for what is Python's: when `tempfile` first looks for its folder,
    it tries whether it can write there, and a process that is killed at that moment leaves its file of four bytes."""
    return sorted(p.name for p in Path(folder).iterdir() if not (
        re.fullmatch("[a-z0-9_]{8}", p.name) and p.is_file() and p.read_bytes() in (b"", b"blat")))


def wait_until(true, seconds: float = 15) -> bool:
    until = time.monotonic() + seconds
    while not (result := true()) and time.monotonic() < until:
        time.sleep(0.05)
    return bool(result)


# -- every cause: one run, and a table of what it must say ------------------------------------------------------------

CHILD = """import subprocess, sys
code = "import os, time\\nif os.fork() == 0:\\n os.setsid()\\n if os.fork(): os._exit(0)\\ntime.sleep(600)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)"""

BAD = {
    "exception": (["md:# title", "x = 1\n\nx / 0\n"], "cell 2 (id c1), line 3: ZeroDivisionError: division by zero"),
    "called": (["def f(x):\n    return x.nope", "\n\ny = 1\nf(y)"], "cell 2 (id c1), line 4: AttributeError: 'int'"),
    "syntax": (["x = 1\nx = = 2"], "cell 1 (id c0), line 2: SyntaxError: invalid syntax"),
    "magic": (["%nope"], "cell 1 (id c0), line 1: UsageError: Line magic function `%nope` not found."),
    "sys_exit": (["import sys\nsys.exit(3)"], "cell 1 (id c0), line 2: SystemExit: 3 (sys.exit ends nothing"),
    "exit": (["exit()"], "cell 1 (id c0): exit() ends the kernel"),
    "os_exit": (["import os\nprint('so far')\nos._exit(3)"], "cell 1 (id c0), line 3: the kernel ended: exit status 3"),
    "os_exit_0": (["import os", "os._exit(0)"], "cell 2 (id c1), line 1: the kernel ended: exit status 0"),
    "killed": (["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"], "line 2: the kernel was killed by SIGKILL"),
    "term": (["import os, signal\nos.kill(os.getpid(), signal.SIGTERM)"], "line 2: the kernel was killed by SIGTERM"),
    "supervisor": (["import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass"], "killed by SIGKILL"),
    "segfault": (["import ctypes\nctypes.string_at(0)"], "line 2: the kernel was killed by SIGSEGV, a crash in"),
    "asks": (["x = input('name? ')"], "cell 1 (id c0), line 1: asks for input, and nobody is there to answer"),
    "password": (["import getpass\ngetpass.getpass()"], "line 2: asks for input"),
    "debugger": (["import pdb\npdb.set_trace()\nx = 1"], "cell 1 (id c0): asks for input"),
    "no_raise": ([("x = 1", "raises-exception")], "cell 1 (id c0): it is tagged raises-exception, and did not raise"),
    "own": (["open('own.ipynb', 'a').write(' ')"], "own.ipynb: it writes to its own file while it runs"),
    "stray": (["import os\nos.makedirs('m/n'); open('m/n/x', 'w').close(); open('s.txt', 'w').close()"],
              "it leaves files outside _out/: m (new), s.txt (new)"),
    "changes": (["open('kept.txt', 'a').write('more')"], "it leaves files outside _out/: kept.txt (changed)"),
    "deletes": (["import os\nos.remove('doomed.txt')"], "it leaves files outside _out/: doomed.txt (deleted)"),
    "forked": (["import os\nif os.fork() == 0:\n    open('forked.txt', 'w').close(); os._exit(0)\nos.wait()"],
               "it leaves files outside _out/: forked.txt (new)"),
    "shell": (["!echo 1 > shell.txt"], "it leaves files outside _out/: shell.txt (made by a program it started)"),
    "torch": (["import torch\ntorch.save(torch.ones(2), 'model.pt')"], "it leaves files outside _out/: model.pt (new)"),
    "bad_str": (["class E(Exception):\n    def __str__(self): 1/0\nraise E"], "line 2: ZeroDivisionError: division by"),
    "huge_error": (["raise ValueError('x' * 50_000_000)"], "cell 1 (id c0), line 1: ValueError: xxxx"),
    "recursion": (["def f(): f()\nf()"], "cell 1 (id c0), line 2: RecursionError: maximum recursion depth"),
    "left_child": ([CHILD, "1/0"], "cell 2 (id c1), line 1: ZeroDivisionError"),
}
GOOD = {
    "plain": ["md:# title", "1 + 1"],
    "raises": [("1/0", "raises-exception"), ("import sys\nsys.exit()", "raises-exception"), "x = 1"],
    "allowed": ["import os\nos.makedirs('_out/a', exist_ok=True)\nopen('_out/a/x', 'w').close()",
                "open('tmp', 'w').close(); os.remove('tmp')"],
    "at_exit": ["import atexit, os\nopen('gone', 'w').close()\natexit.register(os.remove, 'gone')"],
    "imports": ["import helper_module\nhelper_module.x", "import os\nassert os.path.exists('plain.ipynb')"],
    "folder": ["import sys, os\nassert '' in sys.path and not any(p.endswith('tools') for p in sys.path)",
               "assert not any(name.partition('.')[0] == 'runner' for name in sys.modules)"],
    "leaves_child": [CHILD],
    "awaits": ["import asyncio\nawait asyncio.sleep(0.01)"],
    "closes": ["import sys\nsys.stdin.read()"],
    "widgets": ["import ipywidgets as w\nfrom IPython.display import display\no = w.Output()\nwith o: print('inside')",
                "display(o)\nb = w.Button()\nb.on_click(lambda e: print('clicked'))\nb.click()",
                "o.clear_output()\nprint('before')\nwith o: print('inside')",
                "assert o.outputs[0]['text'] == 'inside\\n', o.outputs"],
    "magics": ["%%time\nx = 1", "import os\nos.system('echo hi')", "def f(x): return -x"],
    "pool": ["import multiprocessing as mp\nwith mp.get_context('fork').Pool(2) as p:\n    print(p.map(abs, [-1, 2]))",
             "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as t:\n"
             "    list(t.map(print, [1, 2]))"],
    "no_code": ["md:# only words"],
    "unicode ünï 名": ["'ünï 名 🙂'"],
}
FILES = {
    "empty": (b"", "the file is empty"),
    "text": (b"# not a notebook", "not a notebook: broken JSON: Expecting value: line 1 column 1"),
    "cut": (b'{"cells": [', "not a notebook: broken JSON: Expecting value: line 1 column 12"),
    "list": (b"[1]", "not a notebook: JSON without a list of cells"),
    "old": (b'{"nbformat": 3, "worksheets": []}', "notebook format 3 is not known here, only 4: `jupyter nbconvert"),
    "latin": ('{"é": 1}'.encode("latin-1"), "not a notebook: byte 2 is not UTF-8 text"),
    "conflict": (b'{\n<<<<<<< HEAD\n "nbformat": 4,\n=======\n>>>>>>> x\n}', "merge-conflict markers"),
    "no_cells": (b'{"nbformat": 4, "metadata": {}}', "not a notebook: JSON without a list of cells"),
    "odd_cell": (b'{"nbformat": 4, "cells": [{"cell_type": "heading"}]}', "cell 1 is not a code, markdown or raw"),
    "deep": (b"[" * 100_000, "not a notebook: broken JSON: maximum recursion depth"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "All of the above in one folder, run once by four workers: (folder, output, processes left, files before)."
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "settings.ini").write_text("[DEFAULT]\nnbs_path = .\n")
    for name in ("kept.txt", "doomed.txt"):
        (folder / name).write_text("text")
    (folder / "helper_module.py").write_text("x = 1")
    for name, (cells, _) in BAD.items():
        make_nb(folder / f"{name}.ipynb", *cells)
    for name, cells in GOOD.items():
        make_nb(folder / f"{name}.ipynb", *cells)
    for name, (data, _) in FILES.items():
        (folder / f"{name}.ipynb").write_bytes(data)
    make_nb(folder / "other_kernel.ipynb", "1", kernelspec={"name": "conda-env-x", "display_name": "x"})
    make_nb(folder / "in_r.ipynb", "1", kernelspec={"name": "ir", "language": "R", "display_name": "R"})
    make_nb(folder / "no_spec.ipynb", "1", kernelspec={})
    no_ids = json.loads(make_nb(folder / "no_ids.ipynb", "1").read_text())
    del no_ids["cells"][0]["id"]
    (folder / "no_ids.ipynb").write_text(json.dumps(no_ids))
    text = make_nb(folder / "bom.ipynb", "x = 1\nassert x").read_bytes()
    (folder / "bom.ipynb").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    before = {p: p.read_bytes() for p in folder.glob("*.ipynb") if p.stem != "own"}
    mark = uuid.uuid4().hex
    said = run("--workers", 4, cwd=folder, status=1, RUNNER_TEST=mark)
    return folder, said, marked(mark), before


@pytest.mark.parametrize("name", [n for n in BAD if os.name == "posix" or n not in ("forked", "left_child")])
def test_every_failure_has_its_headline(corpus, name):
    said = corpus[1]
    assert re.search(rf"^failed  {name}\.ipynb", said, re.M)
    lines = [t for t in said.splitlines() if t.startswith(f"FAILED  {name}.ipynb")]
    assert len(lines) == 2 and lines[0] == lines[1]        # where it happened, and once more at the end
    assert BAD[name][1] in lines[0]


@pytest.mark.parametrize("name", FILES)
def test_every_bad_file_is_named_with_what_to_do(corpus, name):
    assert f"FAILED  {name}.ipynb: " in corpus[1]
    assert FILES[name][1] in next(t for t in corpus[1].splitlines() if t.startswith(f"FAILED  {name}.ipynb"))


@pytest.mark.parametrize("name", [*GOOD, "other_kernel", "no_spec", "no_ids", "bom"])
def test_what_is_in_order_passes(corpus, name):
    assert re.search(rf"^passed  {name}\.ipynb", corpus[1], re.M)


def test_a_notebook_in_another_language_is_refused(corpus):
    assert "FAILED  in_r.ipynb: a notebook in r: only Python notebooks are run" in corpus[1]


def test_the_report_shows_source_traceback_and_last_output(corpus):
    said = corpus[1]
    assert "→   3 │ x / 0" in said
    assert "Cell 2, line 4, in <module>" in said.replace("line 2, in <module>", "line 4, in <module>")
    assert "Cell 1, line 2, in f" in said                  # the frame in another cell carries that cell's number
    assert "last output:\n    so far" in said
    assert "\x1b[" not in said and "\r" not in said
    assert "~~^~~" not in said                             # the marks under code differ from Python to Python
    assert not re.search(r"site-packages.(IPython|ipykernel|nbclient)", said)
    assert max(map(len, said.splitlines())) < 1000


def test_tracebacks_among_the_output_show_no_frames_of_the_runner(tmp_path):
    "What is displayed passes the runner's limits, which are in each stack on the way: the other frames stay."
    make_nb(tmp_path / "a.ipynb", """
import traceback
from IPython.display import display
try:
    display({"text/plain": object()}, raw=True)
except ValueError:
    text = traceback.format_exc()
    print(text[text.rindex("zmqshell.py"):text.index("in serialize")])
1 / 0""")
    said = run(".", cwd=tmp_path, status=1).partition("last output:\n")[2]
    for kept in "self.session.send(", "in send", "to_send = self.serialize(msg, ident)":
        assert kept in said, said
    assert "messages.py" not in said and "return send(session" not in said, said


@pytest.mark.torture
def test_what_was_printed_before_a_kernel_ended_itself_is_there(tmp_path):
    "On a busy machine, too: messages are sent by a thread of the library, which a process that ends takes along."
    ends = ["import os\nprint('so far')\nos._exit(3)", "import os, signal\nprint('so far')\nos.kill(os.getpid(), 15)"]
    n = times(6, 24)                                       # of which six run at once
    for i in range(n):
        make_nb(tmp_path / f"{i}_a.ipynb", ends[i % 2] if os.name == "posix" else ends[0])
    said = run(".", "--workers", 6, cwd=tmp_path, status=1)
    assert said.count("last output:\n    so far\n") == n and said.endswith(f"\n0 passed, {n} failed, 0 skipped\n"), said


def test_the_last_line_counts_notebooks(corpus):
    bad = len(BAD) + len(FILES) + 1
    assert corpus[1].splitlines()[-1] == f"{len(GOOD) + 4} passed, {bad} failed, 0 skipped"


def test_nothing_outlives_a_run_and_no_notebook_is_written(corpus):
    folder, _, left, before = corpus
    assert left == []
    assert {p: p.read_bytes() for p in before} == before


GONE = """
import os, socket, subprocess, sys, tempfile
path = f"{tempfile.gettempdir()}/gone-{os.getpid()}"
socket.socket(socket.AF_UNIX).bind(path)
os.remove(path)
subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1], 'w')", path])
os.remove(path)
open(path, "w").close()
os.remove(path)
"""


@posix
@pytest.mark.parametrize("inside", ["", "t"])
def test_temporary_files_inside_the_project_are_nobodys_strays(inside):
    "Folders and sockets of the runner, and what is gone again when the notebook ends; what it leaves is still seen."
    with tempfile.TemporaryDirectory(prefix="gu-", dir="/tmp") as name:        # a path short enough for sockets
        project, temp = Path(name), Path(name, inside)
        temp.mkdir(exist_ok=True)
        (project / "settings.ini").write_text("[DEFAULT]\nnbs_path = .\n")
        (project / "old").touch()
        make_nb(project / "a.ipynb", GONE)
        make_nb(project / "b.ipynb", GONE, "open(tempfile.gettempdir() + '/left', 'w').close()\nos.remove('old')")
        said = run("--workers", 2, cwd=project, status=1, TMPDIR=str(temp))
        left = {f"{Path(inside, 'left')} (new)", "old (deleted)"}
        assert "passed  a.ipynb" in said and said.endswith("1 passed, 1 failed, 0 skipped\n"), said
        assert set(re.search("b.ipynb: it leaves files outside _out/: (.*)", said)[1].split(", ")) == left, said


# -- time -------------------------------------------------------------------------------------------------------------

def test_time_outs_name_the_line_and_end_everything(tmp_path):
    make_nb(tmp_path / "1.ipynb", CHILD, "import time\n\ntime.sleep(600)")
    make_nb(tmp_path / "2.ipynb", "def f():\n    while True:\n        try:\n            while True: pass\n"
            "        except BaseException: pass", "print('here')\nf()")
    make_nb(tmp_path / "3.ipynb", "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n"
            "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')")  # holds the GIL, and no signal reaches it
    make_nb(tmp_path / "4.ipynb", *["import time\ntime.sleep(0.8)"] * 9)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nnbs_path = .\nnotebook_timeout = 4\n")
    mark, start = uuid.uuid4().hex, time.monotonic()
    said = run("--timeout", 2, "--workers", 4, cwd=tmp_path, status=1, RUNNER_TEST=mark)
    assert time.monotonic() - start < 40
    assert "limits: 2.0 s a cell, 4.0 s a notebook" in said
    assert "1.ipynb, cell 2 (id c1), line 3: the cell took longer than its 2 s (--timeout)" in said
    if os.name == "posix":
        assert "2.ipynb, cell 2 (id c1), line 2: the cell took longer than its 2 s" in said
    assert "3.ipynb, cell 1 (id c0)" in said
    assert re.search(r"4.ipynb, cell [456] \(id c\d\), line 2: the notebook took longer than its 4 s", said)
    assert said.splitlines()[-1] == "0 passed, 4 failed, 0 skipped"
    assert marked(mark) == []


# -- processes --------------------------------------------------------------------------------------------------------

@posix
@pytest.mark.parametrize("sig", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_nothing_outlives_a_runner_that_is_ended(tmp_path, sig):
    busy = [CHILD, "open('_out/busy', 'a').close()\nwhile True:\n    try:\n        while True: pass\n"
            "    except BaseException: pass"]
    (tmp_path / "_out").mkdir()
    for name in ("a", "b"):
        make_nb(tmp_path / f"{name}.ipynb", *[c.replace("busy", f"busy_{name}") for c in busy])
    make_nb(tmp_path / "c.ipynb", "1")
    mark = uuid.uuid4().hex
    proc = subprocess.Popen([sys.executable, str(RUNNER), ".", "--workers", "2"], cwd=tmp_path, encoding="utf-8",
                            env=environment(RUNNER_TEST=mark), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert wait_until(lambda: len(list((tmp_path / "_out").iterdir())) == 2, 30)
    assert len(marked(mark)) >= 5                          # the runner, kernels, their children
    temp = {p for m in marked(mark) for p in words(m) if re.search(r"/run_nb-\d+-\w+$", p)}
    proc.send_signal(getattr(signal, sig))
    said, _ = proc.communicate(timeout=30)
    assert proc.returncode == (-9 if sig == "SIGKILL" else 128 + getattr(signal, sig))
    assert wait_until(lambda: marked(mark) == [], 5 if sig == "SIGKILL" else 0.01), marked(mark)
    assert len(temp) >= 2 and wait_until(lambda: not any(map(os.path.exists, temp)))
    if sig != "SIGKILL":
        assert f"skipped a.ipynb  (stopped by {sig})" in said and said.endswith("0 passed, 0 failed, 3 skipped\n")


@linux
def test_a_kernel_that_leaks_is_ended_and_the_others_are_not(tmp_path):
    make_nb(tmp_path / "leak.ipynb", "x = []\nwhile True:\n    x.append(b'x' * 10_000_000)")
    make_nb(tmp_path / "child.ipynb", "import subprocess, sys\nsubprocess.run([sys.executable, '-c', "
            "'x = b\"x\" * 700_000_000; input()'], stdin=subprocess.PIPE)\nimport time\ntime.sleep(60)")
    make_nb(tmp_path / "fine.ipynb", "import time\ntime.sleep(2)")
    said = run(".", "--memory", 0.5, "--workers", 3, "--timeout", 30, cwd=tmp_path, status=1)
    assert re.search(r"leak.ipynb, cell 1 \(id c0\), line [23]: it held \S+ GB, more than its 0.5", said)
    assert re.search(r"child.ipynb, cell 1 \(id c0\).*: it held \S+ GB, more than its 0.5 GB", said)
    assert said.endswith("1 passed, 2 failed, 0 skipped\n") and "0.5 GB a kernel" in said


# -- output -----------------------------------------------------------------------------------------------------------

def test_floods_of_output_leave_first_and_last_part_and_the_runner_small(tmp_path):
    flood = make_nb(tmp_path / "1.ipynb", "print('first')\nfor i in range(400_000): print('x' * 499)\nprint('last')",
                    "print('first' + 'y' * 200_000_000 + 'last')",
                    "from IPython.display import display, HTML\nfor i in range(3000): display(i)",
                    "HTML('z' * 100_000_000)")
    make_nb(tmp_path / "2.ipynb", "import subprocess, sys\nsubprocess.run([sys.executable, '-c', "
            "\"import os\\nfor i in range(20000): os.write(1, b'w' * 999 + b'\\\\n')\"])")
    proc = subprocess.Popen([sys.executable, str(RUNNER), ".", "--save", "--workers", "2"], cwd=tmp_path,
                            env=environment(), stdout=subprocess.PIPE, encoding="utf-8")
    runner, most = psutil.Process(proc.pid), 0
    while proc.poll() is None:
        with_context = runner.memory_info().rss if proc.poll() is None else 0
        most = max(most, with_context)
        time.sleep(0.05)
    assert proc.returncode == 0, proc.stdout.read()
    text = "".join(outputs(flood, 0)[0]["text"])
    assert text.startswith("first\n") and text.endswith("last\n") and "characters left out" in text
    assert len(text) < 500_000
    text = "".join(outputs(flood, 1)[0]["text"])
    assert text.startswith("firstyyy") and text.endswith("yyylast\n") and "199,600,010 characters left out" in text
    shown = [o["data"]["text/plain"] for o in outputs(flood, 2) if "data" in o]
    assert shown[0] == ["0"] and shown[-1] == ["2999"] and len(shown) == 400
    assert "left out" in outputs(flood, 3)[0]["data"]["text/plain"][0]
    print(f"the runner held at most {most / 1e6:.0f} MB")
    assert most < 200e6


def test_streams_end_as_a_terminal_would_show_them(tmp_path):
    nb = make_nb(tmp_path / "a.ipynb", "import sys\nfor i in range(101): print(f'\\r{i}%', end='')\nprint()",
                 "print('a'); print('e', file=sys.stderr); print('b')", "print('abc\\b\\bX')\nprint('12345\\r67')",
                 "from IPython.display import display, clear_output\nprint(1); clear_output(); print(2); display(3)\n"
                 "print(4)", "import ipywidgets\nipywidgets.IntSlider()")
    run("a.ipynb", "--save", cwd=tmp_path, status=0)
    assert outputs(nb, 0) == [{"name": "stdout", "output_type": "stream", "text": ["100%\n"]}]
    assert [(o["name"], o["text"]) for o in outputs(nb, 1)] == [("stdout", ["a\n", "b\n"]), ("stderr", ["e\n"])]
    assert outputs(nb, 2)[0]["text"] == ["aXc\n", "67345\n"]
    assert [o["output_type"] for o in outputs(nb, 3)] == ["stream", "display_data", "stream"]
    assert list(outputs(nb, 4)[0]["data"]) == ["text/plain"]
    assert "widgets" not in json.loads(nb.read_text())["metadata"]


@pytest.mark.parametrize("line, shown", [("a\rb", "b"), ("abc\r", "abc"), ("ab\r\r", "ab"), ("x", "x"), ("", ""),
                                         ("100%\r5%", "5%0%"), ("a\b\b\bz", "z"), ("long line\r\x1b[K", ""),
                                         ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m")])
def test_settle(line, shown):
    assert settle(line) == (shown if line != "long line\r\x1b[K" else "long line")


def test_streaming(tmp_path):
    make_nb(tmp_path / "a.ipynb", "print('hello')", "1", "print('no newline', end='')")
    said = run("a.ipynb", "--stream", cwd=tmp_path, status=0)
    assert "── a, cell 1\nhello\n── a, cell 2\n1\n── a, cell 3\nno newline\npassed  a.ipynb" in said


def test_widgets_that_are_answered_do_not_stop_the_cell(tmp_path):
    "nbclient answers an Output widget while it waits for the cell's reply on the same socket: no reply is missed."
    make_nb(tmp_path / "a.ipynb", *["import ipywidgets\no = ipywidgets.Output()\nwith o: print('inside')\n"
                                    "o.clear_output()"] * 3)
    start = time.monotonic()
    run("a.ipynb", "--timeout", 20, cwd=tmp_path, status=0)
    assert time.monotonic() - start < 15


def test_text_in_many_pieces_is_one_output(tmp_path, monkeypatch):
    "The runner does not hold an output for each of them."
    import run_notebook
    from runner import execute
    make_nb(tmp_path / "a.ipynb", "for i in range(200): print(i, flush=True)")
    counts = []
    monkeypatch.setattr(execute, "tidy_outputs", lambda outputs: counts.append(len(outputs)) or [])
    monkeypatch.chdir(tmp_path)
    assert run_notebook.main(["a.ipynb"]) == 0 and counts == [1]


def test_a_kernel_that_loses_the_end_of_its_output_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    import run_notebook
    from runner import execute
    make_nb(tmp_path / "a.ipynb", "print('here')\nget_ipython().kernel._publish_status = lambda *a, **k: None", "1 / 0")
    monkeypatch.setattr(execute, "OUTPUT_SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert run_notebook.main(["a.ipynb"]) == 1 and time.monotonic() - start < 30


# -- saving -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def project(tmp_path):
    "A project of its own, set up as this one is."
    for name in ("settings.ini", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_slow_runs_may_write_their_logs_and_others_not(project):
    make_nb(project / "nbs" / "01_a.ipynb", "import os\nos.makedirs('../records', exist_ok=True)\n"
            "open('../records/01.csv', 'a').write('row')")
    assert "it leaves files outside _out/: ../records (new)" in run("--device", "cpu", cwd=project, status=1)
    run("--slow", "--device", "cpu", cwd=project, status=0)
    make_nb(project / "nbs" / "01_a.ipynb", "open('../other.csv', 'w').write('row')")
    said = run("--slow", "--device", "cpu", cwd=project, status=1)
    assert "it leaves files outside _out/: ../other.csv (new)" in said


def test_saving_keeps_what_was_skipped_and_leaves_nothing_to_clean(project):
    nb = make_nb(project / "nbs" / "01_a.ipynb", "#slow\n1", "#cuda\n2", "object()", "print('ünï')",
                 ("1/0", "raises-exception"), "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    doc = json.loads(nb.read_text())
    kept = [{"data": {"text/plain": ["old"]}, "execution_count": None, "metadata": {}, "output_type": "execute_result"}]
    doc["cells"][0]["outputs"] = doc["cells"][1]["outputs"] = doc["cells"][2]["outputs"] = kept
    doc["cells"][2]["metadata"] = {"scrolled": True, "execution": {"iopub.status.busy": "2020"}}
    nb.write_text(json.dumps(doc))
    said = run("--save", "--device", "cpu", cwd=project, status=0)
    assert "· 1 cell skipped: #slow (cell 1)  · 1 cell skipped: #cuda (cell 2)" in said
    assert "2 cells skipped in notebooks that ran" in said and said.endswith("1 passed, 0 failed, 0 skipped\n")
    new = json.loads(nb.read_text())
    assert new["cells"][0]["outputs"] == new["cells"][1]["outputs"] == kept
    assert new["cells"][2]["outputs"][0]["data"]["text/plain"] == ["<object>"]
    assert new["cells"][2]["metadata"] == {} and new["cells"][4]["metadata"] == {"tags": ["raises-exception"]}
    assert new["cells"][4]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert "image/png" in new["cells"][5]["outputs"][0]["data"]
    assert set(new["metadata"]) == {"kernelspec"} and all(c["execution_count"] is None for c in new["cells"])
    saved = nb.read_bytes()
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean('nbs')"], cwd=project,
                   check=True)
    assert nb.read_bytes() == saved
    stat = nb.stat()
    assert "outputs unchanged" in run("--save", cwd=project, status=0)
    assert (nb.stat().st_mtime_ns, nb.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino)


def test_saving_keeps_every_key_of_an_output(project):
    "nbdev's own writer drops keys that end in an underscore, and fails at an empty one."
    nb = make_nb(project / "nbs" / "01_a.ipynb", "from IPython.display import JSON\nJSON({'a_': 1, '': [2], '_': {}})")
    run("--save", cwd=project, status=0)
    assert json.loads(nb.read_text())["cells"][0]["outputs"][0]["data"]["application/json"] == {"a_": 1, "": [2],
                                                                                             "_": {}}


def test_slow_cells_run_with_slow(project):
    make_nb(project / "nbs" / "01_a.ipynb", "#slow\nprint('ran')")
    said = run("--slow", "--stream", cwd=project, status=0)
    assert "\nran\n" in said and "limits: 4:00 h a cell, 4:00 h a notebook" in said


def test_a_failure_saves_nothing(project):
    nb = make_nb(project / "nbs" / "01_a.ipynb", "1", "1/0")
    before = nb.read_bytes()
    run("--save", cwd=project, status=1)
    assert nb.read_bytes() == before


def test_a_file_that_changed_meanwhile_is_not_overwritten(project):
    nb = make_nb(project / "nbs" / "01_a.ipynb", "open('../_out/go', 'w').close()\nimport time\ntime.sleep(2)")
    (project / "_out").mkdir()
    proc = subprocess.Popen([sys.executable, str(RUNNER), "--save"], cwd=project, env=environment(),
                            stdout=subprocess.PIPE, encoding="utf-8")
    assert wait_until((project / "_out" / "go").exists)
    newer = nb.read_text().replace("sleep(2)", "sleep(3)")
    nb.write_text(newer)
    said = proc.communicate()[0]
    assert proc.returncode == 1 and "01_a.ipynb: not saved: it changed while this ran" in said
    assert nb.read_text() == newer


def test_what_cannot_be_saved_is_said_and_the_file_stays(project, monkeypatch):
    nb = make_nb(project / "nbs" / "01_a.ipynb", "1")
    nb.chmod(0o444)
    assert "not saved: the file is read-only" in run("--save", cwd=project, status=1)
    nb.chmod(0o644)
    before, book = nb.read_bytes(), Notebook(nb, "a")
    book.read(slow=False, cuda=False)
    book.executed[0] = [], 1
    book.cells[0]["source"] = "2"

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotSaved, match="not saved: No space left on device; nothing was changed"):
        save(book)
    assert nb.read_bytes() == before and [p.name for p in nb.parent.iterdir()] == [nb.name]


@posix
@pytest.mark.torture
def test_a_runner_killed_while_it_saves_leaves_the_old_file_or_the_new_one(project):
    "Around the moment when it should save; `test_crash.py` kills it while it does, at each step and at any moment."
    nb = make_nb(project / "nbs" / "01_a.ipynb", "print('x' * 100_000)")
    old = nb.read_bytes()
    run("--save", cwd=project, status=0)
    new, seen = nb.read_bytes(), set()
    start = time.monotonic()
    run("--save", cwd=project, status=0)
    usual = time.monotonic() - start
    for i in range(1, 8, times(3, 1)):
        nb.write_bytes(old)
        proc = subprocess.Popen([sys.executable, str(RUNNER), "--save"], cwd=project, env=environment(),
                                stdout=subprocess.DEVNULL)
        time.sleep(usual * (0.5 + 0.07 * i))
        proc.kill()
        proc.wait()
        seen.add(nb.read_bytes())
    assert seen <= {old, new}


# -- options ----------------------------------------------------------------------------------------------------------

def test_order_and_durations(project):
    for name in ("10_j", "9_i", "05_a", "05b_c", "05a_b", "06_d"):
        make_nb(project / "nbs" / f"{name}.ipynb", "import time; time.sleep(0.3)\n1/0" if name == "05b_c" else "md:x")
    said = run("--workers", 1, "--durations", 1, cwd=project, status=1)
    order = re.findall(r"^(?:passed|failed|skipped)\s+nbs.(\w+)\.ipynb", said, re.M)
    assert order == ["05_a", "05a_b", "05b_c", "06_d", "9_i", "10_j"]
    assert re.search(r"slowest 1 cell:\n +0\.\d s  nbs.05b_c.ipynb +cell   1  import time", said)
    assert said.endswith("5 passed, 1 failed, 0 skipped\n")


def test_pages(project):
    for name, source in {"05_a": "# $x$\n1", "05b_c": "1/0"}.items():
        make_nb(project / "nbs" / f"{name}.ipynb", source)
    run("--html", "_out", cwd=project, status=1)
    page = (project / "_out" / "05_a.html").read_text(encoding="utf-8")
    assert "<html" in page and "05_a" in page and "$x$" in page
    assert re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?://[^"]+)"', page) == \
        ["https://cdnjs.cloudflare.com/ajax/libs/mathjax/2.7.7/latest.js?config=TeX-AMS_CHTML-full,Safe"]
    assert "ZeroDivisionError" in (project / "_out" / "05b_c.html").read_text(encoding="utf-8")


def test_paths_are_files_folders_globs_and_names(project):
    for name in ("01_a", "02_b", "sub/03_c", ".hidden/04_d", "_out/05_e"):
        make_nb(project / "nbs" / f"{name}.ipynb", "md:x")
    assert run(cwd=project, status=0).endswith("3 passed, 0 failed, 0 skipped\n")
    assert run("--save", "nbs/01_a.ipynb", cwd=project, status=0).endswith("1 passed, 0 failed, 0 skipped\n")
    assert run("02_b", cwd=project, status=0).endswith("1 passed, 0 failed, 0 skipped\n")
    assert run("nbs/0*.ipynb", "nbs", cwd=project, status=0).endswith("3 passed, 0 failed, 0 skipped\n")


@pytest.mark.parametrize("args, message", [
    (["nowhere"], "run_notebook.py: nowhere: no such file or folder"),
    (["."], "run_notebook.py: .: no notebooks there"),
    (["*.ipynb"], "run_notebook.py: *.ipynb: no notebooks there"),
    (["--workers", "none"], "run_notebook.py: --workers: should be a whole number from 1 up, not 'none'"),
    (["--workers", "0"], "run_notebook.py: --workers: should be a whole number from 1 up, not '0'"),
    (["--timeout=-1"], "run_notebook.py: --timeout: should be a number from 0 up, not '-1'"),
    (["--timeout", "nan"], "run_notebook.py: --timeout: should be a number"),
    (["--device", "tpu"], "run_notebook.py: --device: invalid choice: 'tpu' (choose from "),
    (["--html"], "run_notebook.py: --html: expected one argument"),
    (["--device", "CPU"], "run_notebook.py: --device: invalid choice: 'CPU'"),
    (["--slow=maybe"], "run_notebook.py: --slow: ignored explicit argument 'maybe'"),
    (["--save=TRUE"], "run_notebook.py: --save: ignored explicit argument 'TRUE'"), (["--sav"], "arguments: --sav"),
    (["--unheard_of"], "run_notebook.py: unrecognized arguments: --unheard_of"), (["-"], "-: no such file or folder"),
])
def test_misuse_is_one_line_and_status_2(tmp_path, args, message):
    said = run(*args, cwd=tmp_path, status=2)
    assert message in said
    assert len(said.splitlines()) == 1


def test_broken_settings_are_misuse(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\ncell_timeout = soon\n")
    assert "cell_timeout should be a number, not 'soon'" in run(cwd=tmp_path, status=2)


def test_the_environment_of_a_kernel(project):
    make_nb(project / "nbs" / "01_a.ipynb", "import os, sys\nprint(os.environ['GROUNDUP_DEVICE'], "
            "os.environ.get('OMP_NUM_THREADS'), os.environ['MPLBACKEND'], sys.executable)")
    for name in ("02_b", "03_c"):
        make_nb(project / "nbs" / f"{name}.ipynb", "md:x")
    said = run("--device", "cpu", "--workers", 3, "--stream", cwd=project, status=0, OMP_NUM_THREADS="")
    assert f"module://matplotlib_inline.backend_inline {sys.executable}\n" in said
    threads = max(1, len(os.sched_getaffinity(0)) // 3) if hasattr(os, "sched_getaffinity") else None
    assert re.search(rf"\ncpu {threads or '[0-9]+'} module", said)


def test_cells_for_a_gpu_run_where_there_is_one(project, monkeypatch):
    import run_notebook
    from runner import crew
    from runner.report import Screen
    nb = make_nb(project / "nbs" / "01_a.ipynb", "\n# cuda\n2", "1")

    def skips(*args, gpu: bool) -> list:
        monkeypatch.setattr(crew, "has_gpu", lambda device: gpu and device != "cpu")
        runner = crew.Crew([nb, nb], run_notebook.command_line([*args]), Screen())
        runner.nbs[0].read(slow=False, cuda=runner.cuda)
        return [list(runner.nbs[0].skips.values()), runner.workers]
    many = min(2, crew.cores())
    assert skips(gpu=True) == [[], 1] and skips("--workers", "2", gpu=True) == [[], 2]
    assert skips(gpu=False) == [["#cuda"], many] and skips("--device", "cpu", gpu=True) == [["#cuda"], many]
    assert skips("--device", "cuda", gpu=True) == [[], 1]
    with pytest.raises(common.Misuse, match="no CUDA device"):
        skips("--device", "cuda", gpu=False)


def test_notebooks_on_four_workers_leave_the_runner_small(tmp_path):
    "What they have put out, 10 MB each, is let go: while the last four of twelve run, as much is held as before."
    for i in range(12):
        make_nb(tmp_path / f"{i}.ipynb", *["'x' * 1_000_000"]*9, "print('y' * 1_000_000)")
    proc = subprocess.Popen([sys.executable, str(RUNNER), ".", "--workers", "4"], cwd=tmp_path, encoding="utf-8",
                            stdout=subprocess.PIPE, env=environment())
    held = [psutil.Process(proc.pid).memory_info().rss for line in proc.stdout if line.startswith("passed")]
    assert proc.wait() == 0 and len(held) == 12
    early, late = statistics.median(held[3:7]), statistics.median(held[8:])
    print(f"{early / 1e6:.0f} MB after the fourth to seventh, {late / 1e6:.0f} MB after the last four")
    assert max(held) < 200e6 and late < early + 20e6


def test_many_workers_never_fail_without_reason(tmp_path):
    for i in range(8):
        make_nb(tmp_path / f"{i}.ipynb", "import os\nos.getpid()")
    deep = tmp_path / ("d" * 80)                           # a temporary folder too long a path for a socket
    deep.mkdir()
    assert run(".", "--workers", 8, cwd=tmp_path, TMPDIR=str(deep)).endswith("8 passed, 0 failed, 0 skipped\n")


def test_a_reader_left_behind_ends_with_its_channel():
    "As nbclient leaves one when a cell takes too long: it must not end in an error that nobody asks for."
    async def read():
        channel = Channel(zmq.asyncio.Context.instance().socket(zmq.PULL), Session())
        channel.close()
        task = asyncio.create_task(channel.get_msg())
        await asyncio.wait([task])
        return task.cancelled()
    assert asyncio.run(read())
