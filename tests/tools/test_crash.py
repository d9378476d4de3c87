"""A kill at any moment, a second exporter, an editor: modules and notebooks stay whole, and nobody's work is lost."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from conftest import ROOT, make_nb, run_tool
from figures import figure, times
from runner.notebook import Notebook
from runner.save import NotSaved, save
from test_run_notebook import environment, left_in, marked, posix, wait_until

pytestmark = pytest.mark.torture

SEED = 42
CHAPTERS = 6
FOLDERS = "nbs", "exp", "groundup"
BESIDE = re.compile(r"\..+\.new")                          # what the tools name a file while they write it
TOOLS = ROOT / "tools"

# Runs a tool and kills it at its nth step of writing: before or after a file is made, synced, given its mode, renamed.
STEPS = """
import os, runpy, signal, sys
tools, at, tool, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, tools)
at, step, leave = int(at), 0, os._exit

def count():
    global step
    step += 1
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)

def stepwise(f):
    def g(*args, **kwargs):
        count()
        result = f(*args, **kwargs)
        count()
        return result
    return g

def end(status):
    os.write(1, f"steps: {step}\\n".encode())
    leave(status)

for name in "fsync", "chmod", "replace":
    setattr(os, name, stepwise(getattr(os, name)))
os._exit = end
try:
    runpy.run_path(os.path.join(tools, tool + ".py"), run_name="__main__")
except SystemExit as e:
    sys.stdout.flush()
    end(e.code)
"""


@pytest.fixture
def project(tmp_path):
    "A project of its own, set up as this one is."
    for name in ("settings.ini", "pyproject.toml", ".gitignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in (*FOLDERS, "_out"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def temp():
    "A folder for the kernels' temporary folders, its path short enough for a socket."
    folder = tempfile.mkdtemp(prefix="gu-")
    yield Path(folder)
    shutil.rmtree(folder)


def state(project: Path) -> dict[Path, bytes]:
    "The notebooks, the modules and the door, without what was left beside them."
    return {p: p.read_bytes() for folder in FOLDERS for p in (project / folder).iterdir()
            if p.is_file() and not BESIDE.fullmatch(p.name)}


def put(files: dict[Path, bytes]) -> None:
    for path, data in files.items():
        path.write_bytes(data)


def beside(project: Path) -> set[Path]:
    "What killed tools left beside notebooks and modules."
    return {Path(e.path) for folder in FOLDERS for e in os.scandir(project / folder) if BESIDE.fullmatch(e.name)}


def big(name: str, version: int) -> str:
    "A line of code, long enough that writing it takes a moment."
    return f"{name} = '{str(version) * 200_000}'"


class Victim:
    "A tool that turns a project's files from `old` into `new`, and is killed while it does."

    def __init__(self, project: Path, tool: str, *args: str, env: dict | None = None):
        self.project, self.tool, self.args, self.env = project, tool, args, environment() | (env or {})
        self.random = random.Random(SEED)
        self.rounds = self.kills = self.halfway = 0
        self.left: set[Path] = set()

    def learn(self) -> None:
        "Run it to its end: what `old` becomes, how long it lives, how long it writes, in how many steps."
        self.old, wrote = state(self.project), None
        for _ in range(5):                                 # on a busy machine the look can come too late
            put(self.old)
            start = time.monotonic()
            proc = self.start()
            while proc.poll() is None:
                wrote = wrote or (time.monotonic() if beside(self.project) else None)
            assert proc.returncode == 0
            if wrote:
                break
        assert wrote
        self.life, self.writing = time.monotonic() - start, time.monotonic() - wrote
        self.new = state(self.project)
        assert beside(self.project) == set() and self.new.keys() == self.old.keys() and self.new != self.old
        put(self.old)
        said = self.start(step=0, stdout=subprocess.PIPE).communicate()[0].decode()
        self.steps = int(re.search(r"^steps: (\d+)$", said, re.M)[1])
        assert state(self.project) == self.new and self.steps >= 8

    def start(self, step: int | None = None, stdout=subprocess.DEVNULL) -> subprocess.Popen:
        tool = [str(TOOLS / f"{self.tool}.py")] if step is None else ["-c", STEPS, str(TOOLS), str(step), self.tool]
        return subprocess.Popen([sys.executable, *tool, *self.args], cwd=self.project, env=self.env, stdout=stdout,
                                stderr=subprocess.STDOUT)

    def kill_anywhere(self) -> tuple[subprocess.Popen, str]:
        "Kill it at a random moment of its life."
        delay = self.random.uniform(0, self.life)
        return self.kill_after(self.start(), delay), f"{delay:.3f} s after its start"

    def kill_writing(self) -> tuple[subprocess.Popen, str]:
        "Kill it a random moment after it began to write, sooner rather than later."
        before, delay = beside(self.project), self.writing * self.random.random() ** 2
        proc = self.start()
        while proc.poll() is None and beside(self.project) <= before:
            pass
        return self.kill_after(proc, delay), f"{delay:.4f} s after it began to write"

    def kill_at(self, step: int) -> tuple[subprocess.Popen, str]:
        proc = self.start(step)
        proc.wait()
        return proc, f"at step {step} of {self.steps}"

    @staticmethod
    def kill_after(proc: subprocess.Popen, delay: float) -> subprocess.Popen:
        try:
            proc.wait(delay)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.wait()
        return proc

    def judge(self, proc: subprocess.Popen, when: str) -> None:
        "Every file is old or new; the next victim goes on from what this one left, every fourth run goes to its end."
        self.rounds += 1
        where = f"seed {SEED}, round {self.rounds}, {self.tool} {' '.join(self.args)}: killed {when}"
        now = state(self.project)
        assert proc.returncode in (0, -signal.SIGKILL), (where, proc.returncode)
        self.kills += proc.returncode != 0
        self.halfway += now not in (self.old, self.new)
        assert now.keys() == self.new.keys(), where
        for path, data in now.items():
            assert data in (self.old[path], self.new[path]), f"{where}: {path.name} is neither the old nor the new one"
        self.check(now, where)
        self.left |= beside(self.project)
        if self.rounds % 4 == 0 or proc.returncode == 0:
            assert self.start().wait() == 0, where
            assert state(self.project) == self.new, where
        if state(self.project) == self.new:
            put(self.old)

    def check(self, now: dict[Path, bytes], where: str) -> None:
        "What else must hold after a kill."

    def attack(self, kills: int, steps: int) -> None:
        "So many kills at random moments, half of them while it writes, and some at given steps."
        self.learn()
        put(self.old)
        wanted = range(1, self.steps + 1)
        for step in wanted if steps >= self.steps else sorted(self.random.sample(wanted, steps)):
            put(self.old)
            self.judge(*self.kill_at(step))
        stepped = self.kills
        put(self.old)
        while self.kills - stepped < kills:
            assert self.rounds < 4 * (kills + steps), "it ends before it can be killed"
            self.judge(*(self.kill_writing() if self.kills % 2 else self.kill_anywhere()))
        self.last_run()
        figure(f"SIGKILL of {self.tool} {' '.join(self.args)}".strip(), kills=self.kills - stepped, at_steps=stepped,
               halfway=self.halfway, files_lost=0)

    def last_run(self) -> None:
        "A run after all the kills does its work, and once they are old clears away what those left."
        assert ignored_by_git(self.project, self.left)
        for path in beside(self.project):
            os.utime(path, (1, 1))
        put(self.old)
        assert self.start().wait() == 0
        assert state(self.project) == self.new and beside(self.project) == set()


def ignored_by_git(project: Path, paths: set[Path]) -> bool:
    git = shutil.which("git")
    if not paths or not git:
        return True
    subprocess.run([git, "init", "-q", project], check=True)
    names = "\n".join(p.relative_to(project).as_posix() for p in paths)
    done = subprocess.run([git, "check-ignore", "--stdin"], cwd=project, input=names, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(project / ".git")
    return len(done.stdout.splitlines()) == len(paths)


# -- kills ------------------------------------------------------------------------------------------------------------

def chapters(project: Path, version: int) -> None:
    for i in range(CHAPTERS):
        make_nb(project / "nbs" / f"0{i}_a.ipynb", f"#export\n{big(f'a{i}', version)}", f"#export\nb{i} = {version}",
                f"#export\nin_version_{version}_of_{i} = True")


@posix
def test_killed_exporter(project):
    chapters(project, 1)
    assert run_tool("notebook2script", cwd=project).returncode == 0
    chapters(project, 2)
    Victim(project, "notebook2script").attack(kills=times(5, 80), steps=times(3, 1000))


class Update(Victim):
    def check(self, now, where):
        "The edit is in the notebook or still in the module."
        for path in now:
            nb = self.project / "nbs" / f"{path.stem[2:]}_a.ipynb"
            if path.parent.name == "exp":
                safe = now[nb] == self.new[nb] or now[path] == self.old[path]
                assert safe, f"{where}: the edit of {path.name} is lost"


@posix
def test_killed_update(project):
    chapters(project, 1)
    assert run_tool("notebook2script", cwd=project).returncode == 0
    for module in (project / "exp").glob("nb*.py"):
        module.write_text(re.sub(r"^(b\d) = 1$", r"\1 = new_\1 = 'edited'", module.read_text(), flags=re.M))
    victim = Update(project, "notebook2script", "--update")
    victim.attack(kills=times(5, 70), steps=times(3, 1000))
    assert all(b"new_b" in data for data in victim.new.values())


class Saving(Victim):
    def check(self, now, where):
        "No kernel is left, nor what it wrote."
        mark = self.env["RUNNER_TEST"]
        assert wait_until(lambda: marked(mark) == [], 30), (where, marked(mark))


@posix
def test_killed_runner_that_saves(project, temp):
    for i in range(times(2, 3)):                           # one can be saved while another is not
        make_nb(project / "nbs" / f"0{i}_a.ipynb", f"print('x{i}' * 90_000)", f"{i} + 1")
    env = {"RUNNER_TEST": uuid.uuid4().hex, "TMPDIR": str(temp)}
    victim = Saving(project, "run_notebook", "--save", "--workers", "2", "--device", "cpu", env=env)
    victim.attack(kills=times(3, 50), steps=times(2, 1000))
    for folder in temp.iterdir():                          # of runners killed between making it and starting a kernel
        os.utime(folder, (1, 1))
    victim.last_run()
    assert left_in(temp) == []


# -- two at once ------------------------------------------------------------------------------------------------------

def test_exporters_at_once_while_notebooks_change(project):
    rnd, results = random.Random(SEED), {}
    for version in (2, 1):
        chapters(project, version)
        assert run_tool("notebook2script", cwd=project).returncode == 0
        results[version] = state(project)
    rounds, refused = times(2, 25), 0
    for i in range(rounds):
        where, version = f"seed {SEED}, round {i}", 2 - i % 2
        put({p: data for p, data in results[version].items() if p.suffix == ".ipynb"})
        running = []
        for _ in range(3):
            running.append(subprocess.Popen([sys.executable, TOOLS / "notebook2script.py"], cwd=project, text=True,
                                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
            time.sleep(rnd.uniform(0, 0.1))
        if i % 4 == 1:
            running[0].kill()
        for proc in running:
            said = proc.communicate(timeout=120)[1]
            assert proc.returncode in (0, 1, -9) and "Traceback" not in said, (where, said)
            assert proc.returncode != 1 or "it changed while this ran" in said, (where, said)
            refused += proc.returncode == 1
        now = state(project)
        for path, data in now.items():
            assert data in (results[1][path], results[2][path]), f"{where}: {path.name} is not whole"
        assert run_tool("notebook2script", cwd=project).returncode == 0 and state(project) == results[version], where
    figure("three exporters at once", rounds=rounds, refused=refused, files_lost=0)


# -- an editor --------------------------------------------------------------------------------------------------------

def replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".swp")
    new.write_bytes(data)
    os.replace(new, path)


EDITED = {
    "in_place": (lambda p: p.write_bytes(p.read_bytes().replace(b"# old", b"# new")), "it changed while"),
    "replaced": (lambda p: replace(p, p.read_bytes().replace(b"# old", b"# new")), "it changed while"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[:50]), "it changed while"),
    "emptied": (lambda p: p.write_bytes(b""), "it changed while"),
    "removed": (Path.unlink, "it changed while"),
    "renamed": (lambda p: p.rename(p.with_name("renamed_to.ipynb")), "it changed while"),
    "same": (lambda p: replace(p, p.read_bytes()), None),
}


def test_an_editor_that_saves_while_notebooks_run(project):
    "The runner leaves alone what somebody changed, and its own results are not lost."
    for name in EDITED:
        make_nb(project / "nbs" / f"{name}.ipynb",
                f"# old\nimport os, time\nopen('../_out/{name}.go', 'w').close()\nend = time.monotonic() + 60\n"
                f"while not os.path.exists('../_out/{name}.done') and time.monotonic() < end: time.sleep(0.02)",
                f"print('result of {name}')")
    proc = subprocess.Popen([sys.executable, TOOLS / "run_notebook.py", "--save", "--workers", "4"], cwd=project,
                            env=environment(), stdout=subprocess.PIPE, encoding="utf-8")
    files = {}
    for name in sorted(EDITED):                            # the order in which they are run
        nb = project / "nbs" / f"{name}.ipynb"
        assert wait_until((project / "_out" / f"{name}.go").exists, 60)
        EDITED[name][0](nb)
        files |= {p: p.read_bytes() for p in (nb, nb.with_name("renamed_to.ipynb")) if p.exists()}
        (project / "_out" / f"{name}.done").touch()
    said = proc.communicate(timeout=120)[0]
    assert proc.returncode == 1 and said.endswith(f"1 passed, {len(EDITED) - 1} failed, 0 skipped\n"), said
    for name, (_, cause) in EDITED.items():
        nb, kept = project / "nbs" / f"{name}.ipynb", project / "_out" / f"{name}.executed.ipynb"
        assert nb.exists() == (name not in ("removed", "renamed"))
        if cause:
            line = next(t for t in said.splitlines() if t.startswith("FAILED") and f"{name}.ipynb: " in t)
            assert f"not saved: {cause}" in line and line.endswith(f"its outputs are in {Path('_out', kept.name)}")
            assert not nb.exists() or nb.read_bytes() == files[nb]
        else:
            assert re.search(rf"^passed  nbs.{name}\.ipynb.* · saved$", said, re.M) and not kept.exists()
        doc = json.loads((kept if cause else nb).read_text(encoding="utf-8"))
        assert doc["cells"][1]["outputs"][0]["text"] in ([f"result of {name}\n"], f"result of {name}\n")
    assert (project / "nbs" / "renamed_to.ipynb").read_bytes() == files[project / "nbs" / "renamed_to.ipynb"]
    figure("editors that save while the runner runs", ways=len(EDITED), edits_lost=0, results_lost=0)


@pytest.mark.parametrize("edit", ["in_place", "replaced", "removed"])
def test_an_editor_that_saves_while_the_runner_saves(project, monkeypatch, edit):
    nb = make_nb(project / "nbs" / "01_a.ipynb", "# old")
    book = Notebook(nb, "a")
    book.read(slow=False, cuda=False)
    book.executed[0] = [{"output_type": "stream", "name": "stdout", "text": "result"}], 1
    fsync = os.fsync

    def busy_disk(fd):
        monkeypatch.setattr(os, "fsync", fsync)
        EDITED[edit][0](nb)
    monkeypatch.setattr(os, "fsync", busy_disk)
    with pytest.raises(NotSaved, match="it changed while this ran"):
        save(book)
    assert nb.exists() == (edit != "removed") and (not nb.exists() or b"# new" in nb.read_bytes())
    assert beside(project) == set()
