"""The runner under load: flat memory, a limit for each kernel, and nothing it started left, however it ends."""
import asyncio
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import common
import psutil
import pytest
import run_notebook
from conftest import ROOT, make_nb, run_tool
from figures import figure, times
from runner import execute
from test_run_notebook import environment, left_in, linux, marked, posix, wait_until

pytestmark = pytest.mark.torture

SEED = 42
RUNNER = [sys.executable, str(ROOT / "tools" / "run_notebook.py")]
STEADY = 40e6                                              # bytes the runner may grow by once it is under way

# Starts a family of five that ignores requests to end: a child, a fork, a parent with a child in a session of its own,
# a daemon. Each writes its pid to `file`.
FAMILY = """
import os, signal, subprocess, sys, time

def start(file):
    for role in ("child", "parent", "daemon"):
        subprocess.Popen([sys.executable, __file__, role, file], stdin=subprocess.DEVNULL)
    if os.fork() == 0:
        stay(file)
    end = time.monotonic() + 60
    while count(file) < 5 and time.monotonic() < end:
        time.sleep(0.01)

def count(file):
    return len(open(file).read().split()) if os.path.exists(file) else 0

def stay(file):
    for s in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM:
        signal.signal(s, signal.SIG_IGN)
    with open(file, "a") as f:
        f.write(f"{os.getpid()}\\n")
    time.sleep(600)

if __name__ == "__main__":
    role, file = sys.argv[1:]
    if role == "parent":
        subprocess.Popen([sys.executable, __file__, "child", file], start_new_session=True)
    if role == "daemon":
        os.setsid()
        if os.fork():
            os._exit(0)
    stay(file)
"""


@pytest.fixture
def project(tmp_path):
    "A project of its own, set up as this one is, in whose notebooks `family` can be imported."
    for name in ("settings.ini", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("nbs", "_out"):
        (tmp_path / name).mkdir()
    (tmp_path / "family.py").write_text(FAMILY)
    return tmp_path


@pytest.fixture
def env():
    "An environment that marks every process, and with a folder of its own for the kernels' folders."
    folder = tempfile.mkdtemp(prefix="gu-")
    yield environment(RUNNER_TEST=uuid.uuid4().hex, TMPDIR=folder)
    shutil.rmtree(folder)


def start(project: Path, env: dict, *args, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([*RUNNER, "--device", "cpu", *map(str, args)], cwd=project, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)


def nothing_left(env: dict) -> bool:
    "Neither a process nor a folder of a kernel."
    return marked(env["RUNNER_TEST"]) == [] and left_in(env["TMPDIR"]) == []


# -- load -------------------------------------------------------------------------------------------------------------

class Memory(threading.Thread):
    "Looks at what a process holds until it ends: `seen`, in bytes."

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.process, self.seen = psutil.Process(pid), []
        self.start()

    def run(self):
        try:
            while rss := self.process.memory_info().rss:
                self.seen.append(rss)
                time.sleep(0.05)
        except psutil.Error:
            pass


LEAKS = {                                                  # by and by, at once, in a process of its own session
    "leaks": ("x = []\nwhile True:\n    x.append(b'x' * 10_000_000)", r"cell 1 \(id cell-1\), line [23]"),
    "grabs": ("x = b'x' * 900_000_000", r"cell 1 \(id cell-1\)(, line 1)?"),
    "starts": ("import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time\\nx = b\"x\" * "
               "900_000_000\\ntime.sleep(600)'], start_new_session=True)\ntime.sleep(600)",
               r"cell 1 \(id cell-1\), line [34]"),
}


@linux
def test_many_notebooks_on_four_workers_some_of_which_leak(project, env):
    n = times(12, 40)
    for i in range(n - len(LEAKS)):
        make_nb(project / "nbs" / f"{i:02}_fine.ipynb", "'x' * 1_000_000", "print('y' * 1_000_000)",
                "from IPython.display import HTML, display\nfor i in range(50): display(HTML('z' * 20_000))")
    for i, (name, (source, _)) in enumerate(LEAKS.items()):
        make_nb(project / "nbs" / f"{2 + i * (n // 4):02}_{name}.ipynb", source)
    proc = start(project, env, "--workers", 4, "--memory", "400M", "--save")
    memory, said, at_start = Memory(proc.pid), [], 0
    for line in proc.stdout:
        said.append(line)
        if line.startswith("passed") and not at_start:
            at_start = len(memory.seen)
    proc.wait()
    memory.join(10)
    text = "".join(said)
    assert said[-1] == f"{n - len(LEAKS)} passed, {len(LEAKS)} failed, 0 skipped\n", text
    for name, (_, where) in LEAKS.items():
        cause = r"it held \S+ GB, more than its 0.4 GB \(--memory\): let it hold less at a time"
        assert re.search(rf"^FAILED .*_{name}\.ipynb, {where}: {cause}", text, re.M), text
    held = [float(x) for x in re.findall(r"it held (\S+) GB", text)]
    seen, late = memory.seen, statistics.median(memory.seen[-len(memory.seen) // 4:])
    first, most = seen[at_start], max(seen)
    assert most < 200e6 and late < first + STEADY and nothing_left(env)
    figure("the runner's memory, 4 workers", notebooks=n, MB_after_the_first=round(first / 1e6),
           MB_at_most=round(most / 1e6), MB_in_the_last_quarter=round(late / 1e6))
    figure("kernels with --memory 400M that leak", ended=len(held) // 2, others_harmed=0, GB_held_at_most=max(held))


def test_what_is_grabbed_between_two_looks_is_seen_when_the_cell_ends(tmp_path, monkeypatch, capsys):
    def never(self):
        return asyncio.sleep(60)
    monkeypatch.setattr(execute.Cells, "watch_memory", never)
    monkeypatch.chdir(tmp_path)
    make_nb(tmp_path / "a.ipynb", "x = b'x' * 500_000_000")
    assert run_notebook.main(["a.ipynb", "--memory", "400M"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"cell 1 \(id cell-1\): it held 0.[56]\d GB, more than its 0.4 GB \(--memory\)", said), said
    assert run_notebook.main(["a.ipynb", "--memory", "1G"]) == run_notebook.main(["a.ipynb"]) == 0


@pytest.mark.parametrize("value, gigabytes", [("2G", 2), ("2", 2), ("1.5gb", 1.5), ("500M", 0.5), ("250 MB", 0.25),
                                              ("0", 0), (None, 0)])
def test_sizes_of_memory(value, gigabytes):
    assert run_notebook.command_line([f"--memory={value}"] if value else []).memory == gigabytes


@pytest.mark.parametrize("value", ["2X", "-1", "G", "", "nan", "True", "2 2"])
def test_sizes_that_are_none(value):
    with pytest.raises(common.Misuse, match="--memory: should be a size such as 2G or 500M, not "):
        run_notebook.command_line([f"--memory={value}"])


def test_the_limit_is_documented():
    said = run_tool("run_notebook", "--help", cwd=ROOT)
    assert "as in 2G or 500M" in " ".join(said.stdout.split())


# -- nothing stays ----------------------------------------------------------------------------------------------------

ENDS = {
    "succeeds": ("1", "passed"),
    "fails": ("1 / 0", "failed"),
    "exits": ("import os; os._exit(3)", "failed"),
    "hangs": ("import time\nwhile True:\n    try: time.sleep(600)\n    except BaseException: pass", "failed"),
    "leaks": ("x = []\nwhile True: x.append(b'x' * 10_000_000)", "failed"),
}


@linux
def test_families_are_gone_when_a_notebook_is_done(project, env):
    "Children, grandchildren and daemons of a notebook are gone when its verdict is printed, while others still run."
    for name, (source, _) in ENDS.items():
        make_nb(project / "nbs" / f"{name}.ipynb", f"import family\nfamily.start('../_out/{name}.pids')", source)
    proc = start(project, env, "--workers", 5, "--timeout", times(8, 15), "--memory", "700M")
    left = {}
    for line in proc.stdout:
        if m := re.match(r"(passed|failed) +nbs/(\w+)\.ipynb", line):
            pids = set(map(int, (project / "_out" / f"{m[2]}.pids").read_text().split()))
            assert len(pids) == 5, line
            left[m[2]] = m[1], [p for p in marked(env["RUNNER_TEST"]) if p.pid in pids]
    assert proc.wait() == 1
    assert left == {name: (verdict, []) for name, (_, verdict) in ENDS.items()}
    assert nothing_left(env)
    figure("families of five, notebook done", ways_to_end=len(ENDS), processes=5 * len(ENDS), left=0)


def ctrl_c(proc):
    "As a terminal does: to all of the foreground, which the runner's kernels are not in."
    os.killpg(proc.pid, signal.SIGINT)


def ctrl_c_twice(proc):
    ctrl_c(proc)
    time.sleep(0.02)
    if proc.poll() is None:
        ctrl_c(proc)


STOPS = {"Ctrl-C": (ctrl_c, "SIGINT"), "Ctrl-C twice": (ctrl_c_twice, None),
         "SIGTERM": (lambda p: p.terminate(), "SIGTERM"), "SIGHUP": (lambda p: p.send_signal(signal.SIGHUP), "SIGHUP")}


@linux
@pytest.mark.parametrize("how", STOPS)
def test_families_are_gone_when_the_runner_is_stopped(project, env, how):
    for name in ("a", "b"):
        make_nb(project / "nbs" / f"{name}.ipynb", f"import family\nfamily.start('../_out/{name}.pids')\n"
                f"open('../_out/{name}.up', 'w').close()", ENDS["hangs"][0])
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as `nohup make test` leaves it, and the runner respects
    try:
        proc = start(project, env, "--workers", 2, start_new_session=True)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert wait_until(lambda: all((project / "_out" / f"{name}.up").exists() for name in "ab"), 60)
    assert len(marked(env["RUNNER_TEST"])) >= 15           # runner, two supervisors, kernels and families
    stop, name = STOPS[how]
    stop(proc)
    said = proc.communicate(timeout=60)[0]
    assert nothing_left(env), (marked(env["RUNNER_TEST"]), left_in(env["TMPDIR"]))
    assert "Traceback" not in said
    if name:
        assert proc.returncode == 128 + getattr(signal, name) and said.endswith("0 passed, 0 failed, 2 skipped\n")
        assert f"skipped nbs/a.ipynb  (stopped by {name})" in said
    figure(f"families of five, {how}", processes=10, left=0)


@posix
def test_stopped_at_random_moments(project, env):
    "From its first moment to its last the runner ends in order, without a traceback, and leaves nothing."
    rnd, moments = random.Random(SEED), times(4, 50)
    for name in ("a", "b", "c"):
        make_nb(project / "nbs" / f"{name}.ipynb", "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', "
                "'import time; time.sleep(600)'], start_new_session=True)", "1 + 1")
    begin = time.monotonic()
    assert start(project, env, "--workers", 2).communicate()[0].endswith("3 passed, 0 failed, 0 skipped\n")
    life = time.monotonic() - begin
    for i in range(moments):
        sig, delay = (signal.SIGINT, signal.SIGTERM)[i % 2], rnd.uniform(0.05, life * (0.2 if i % 4 == 0 else 1))
        where = f"seed {SEED}, moment {i}: {sig.name} after {delay:.3f} s"
        proc = start(project, env, "--workers", 2, start_new_session=True)
        time.sleep(delay)                                  # the moment is the point
        proc.send_signal(sig)
        said = proc.communicate(timeout=60)[0]
        assert proc.returncode in (0, -sig, 128 + sig), (where, proc.returncode, said)
        assert "Traceback" not in said or python_itself(said), (where, said)
        assert nothing_left(env), (where, marked(env["RUNNER_TEST"]), left_in(env["TMPDIR"]))
    figure("SIGINT and SIGTERM of the runner", moments=moments, tracebacks=0, processes_left=0)


def python_itself(said: str) -> bool:
    "Whether Python was interrupted before it came to our first statements: then the traceback is its own."
    return not re.search(r'run_notebook\.py", line \d\d', said)
