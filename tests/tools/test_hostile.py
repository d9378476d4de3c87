"""The hostile corpus: for each of its notebooks, what the exporter and what the runner must do with it.

The exporter meets every notebook twice: alone, and with all the others. The runner meets them in one run with --save,
and those that hang in a second one with short limits; in the quick form only those marked quick in hostile.py.
"""
import io
import json
import os
import re
import subprocess
import sys
import uuid
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import notebook2script
import psutil
import pytest
from conftest import ROOT, run_tool
from figures import LONG, figure
from hostile import GROUPS, corpus, write

pytestmark = pytest.mark.torture

CASES = corpus()
RUN = [key for key, case in CASES.items() if LONG or case.quick]
NOT_UTF8 = NO_UTF8 = "is not UTF-8 text"
BROKEN = NO_JSON = "not a notebook: broken JSON: "
NO_ID = "has no valid cell id"
NAME = "a notebook's name should hold only letters, digits, blanks and _ - + . , ( )"
MAGIC, MARK = "syntax error: invalid syntax: ", "the mark #export counts only on the first line, and one a cell"
MEANT = "is no mark: is #export meant?"
ALL = "`__all__` is computed: leave it out"
LIMIT, KILLED = "the cell took longer than its 5 s (--timeout)", "the kernel was killed by "
OWN = "it writes to its own file while it runs"
CLEAN = "not saved: nbdev could not clean it: "

# What the exporter says: `made` a module, `none` as nothing is exported, a warning, or else the fault for which it
# writes nothing. What the runner says: `passed` (then the new outputs are in the file), `unseen` as it is none of its
# notebooks, or else the failure that leaves the file as it was; ` | ` stands between answers of which each will do.
TABLE = {
    # files that are no notebooks, and odd encodings
    "empty": ("the file is empty", "the file is empty"), "blank": ("the file is empty",) * 2,
    "nul_bytes": (BROKEN, NO_JSON), "utf16": (NOT_UTF8, NO_UTF8), "utf16_without_bom": (NOT_UTF8, NO_UTF8),
    "utf32": (NOT_UTF8, NO_UTF8), "latin1": (NOT_UTF8, NO_UTF8), "cut_in_a_character": (NOT_UTF8, NO_UTF8),
    "bad_byte_in_an_output": (NOT_UTF8, NO_UTF8), "surrogate_as_utf8": (NOT_UTF8, NO_UTF8), "bom": ("made", "passed"),
    "two_boms": (BROKEN, NO_JSON), "crlf_file": ("made", "passed"), "old_mac_file": ("made", "passed"),
    "ascii_escapes": ("made", "passed"), "one_line": ("made", "passed"),
    "half_character_exported": ("surrogates not allowed", "cell 1: its source holds half a character"),
    "half_character_in_code": ("none", "cell 1: its source holds half a character"),
    "half_character_in_prose": ("none", "not saved: a cell holds half a character"),
    "nul_in_code": ("null bytes", "null bytes"), "gzipped": (NOT_UTF8, NO_UTF8), "python_file": (BROKEN, NO_JSON),
    "html_page": (BROKEN, NO_JSON), "cut_short": (BROKEN, NO_JSON),
    "cut_by_one": (BROKEN, NO_JSON), "written_twice": (BROKEN + "Extra data", NO_JSON),
    "trailing_comma": (BROKEN, NO_JSON), "single_quotes": (BROKEN, NO_JSON),
    "conflict": ("merge-conflict markers", "merge-conflict markers"),
    "conflict_in_a_cell": ("merge-conflict markers", "line 2: SyntaxError"),
    "too_deep": (BROKEN, NO_JSON), "deep_metadata": ("made", "passed"),
    "huge_number": (BROKEN + "Exceeds",) * 2, "not_a_number": ("none", "passed"),
    "keys_twice": ("made", "passed"),
    # notebooks whose parts are not what they should be
    **{key: ("JSON without a list of cells",) * 2
       for key in ("a_list", "a_number", "a_string", "null", "an_object", "no_cells", "cells_object", "cells_null")},
    "no_cell_at_all": ("none", "passed"), "no_format": ("notebook format null is not known",) * 2,
    "format_3": ("notebook format 3 is not known",) * 2, "format_3_flat": ("notebook format 3 is not known",) * 2,
    "format_5": ("notebook format 5 is not known",) * 2, "format_text": ('notebook format "4" is not known',) * 2,
    "format_float": ("made", "passed"), "format_true": ("notebook format true is not",) * 2,
    "format_4_0": (NO_ID, "passed"), "minor_text": ("made", CLEAN), "minor_99": ("made", "passed"),
    "minor_missing": ("made", "passed"),
    **{key: ("cell 2 is not a code, markdown or raw cell",) * 2
       for key in ("cell_number", "cell_null", "cell_list", "cell_empty", "heading_cell", "type_list")},
    **{key: ("cell 1: its source is not text",) * 2
       for key in ("source_number", "source_null", "source_mixed", "source_object")},
    "source_missing": ("cell 2: its source is not text",) * 2,
    "metadata_list": ("made", "its metadata is not an object"),
    "metadata_null": ("made", "its metadata is not an object"),
    "metadata_missing": ("made", "passed"), "cell_metadata_list": ("made", "cell 1: its metadata is not an object"),
    "cell_metadata_missing": ("made", "passed"), "tags_text": ("made", "not an object with a list of tags"),
    "tags_numbers": ("made", "passed"), "outputs_object": ("made", "cell 1: its outputs are not a list"),
    "outputs_missing": ("made", "passed"), "outputs_junk": ("made", "passed"),
    "outputs_junk_of_a_skipped_cell": ("made", "passed | " + CLEAN),
    "outputs_of_prose": ("made", "its outputs are not a list"),
    "count_text": ("made", "passed"), "attachments_number": ("made", CLEAN), "widgets_junk": ("made", "passed"),
    "kernelspec_list": ("made", CLEAN), "kernelspec_numbers": ("made", "a notebook in 3: only Python"),
    "in_julia": ("none", "a notebook in julia: only Python notebooks are run"),
    "ids_duplicate": ("cell 2 (id a): duplicate cell id, also that of cell 1", "passed"),
    **{f"ids_{key}": (NO_ID, "passed") for key in ("missing", "illegal", "number", "empty", "long", "unicode")},
    "ids_list": (NO_ID, CLEAN), "ids_differ_in_case": ("made", "passed"), "extra_keys": ("made", "passed"),
    # marks in odd places
    **{f"mark_{key}": ("made", "passed") for key in ("after_blank_lines", "spaced", "quarto", "capitals")},
    "mark_second_line": ("warning: " + MARK, "passed"), "mark_twice": ("warning: " + MARK, "passed"),
    "mark_with_argument": ("warning: " + MEANT, "passed"), "mark_misspelt": ("warning: " + MEANT, "passed"),
    "mark_in_markdown": ("warning: #export in a cell that is not code", "passed"),
    "mark_in_raw": ("warning: #export in a cell that is not code", "passed"), "mark_in_a_string": ("none", "passed"),
    "mark_alone": ("warning: marked #export, but empty", "passed"),
    **{f"mark_and_{key}": ("warning: " + MEANT, "passed") for key in ("form_feed", "next_line", "line_separator")},
    "mark_wide": ("none", "SyntaxError: invalid character"), "mark_after_bom": ("none",
                                                                                "invalid non-printable character"),
    "mark_in_magic": ("warning: " + MARK, "passed"), "magic_exported": (MAGIC, "line 2: UsageError"),
    "shell_exported": (MAGIC, "passed"), "help_exported": (MAGIC, "passed"),
    "syntax_error": ("cell 1 (id c1), line 2: syntax error", "cell 1 (id c1), line 2: SyntaxError"),
    "await_exported": ("'await' outside function", "NameError: name 'f'"), "future": ("made", "passed"),
    "future_late": ("must occur at the beginning", "passed"), "star_import": ("made", "passed"),
    "all_assigned": (ALL, "passed"), "all_in_a_function": (ALL, "passed"), "all_defined": (ALL, "passed"),
    "all_imported": (ALL, "passed"), "all_read": ("made", "passed"),
    **{f"all_{key}": (ALL, "NameError: name '__all__'") for key in ("extended", "appended", "deleted", "changed")},
    "defined_twice": ("made", "passed"),                   # ruff sees it
    "statement_runs_on": ("'(' was never closed", "SyntaxError"), "string_runs_on": ("unterminated", "SyntaxError"),
    "backslash_at_the_end": ("unexpected EOF", "SyntaxError"), "decorator_at_the_end": ("syntax error", "SyntaxError"),
    "own_header": ("line 3: this line looks like the exporter's own", "passed"), "coding_line": ("made", "passed"),
    "tabs": ("made", "passed"), "tabs_and_blanks": ("line 4: syntax error: inconsistent use of tabs",
                                                    "line 4: TabError"),
    "form_feeds": ("made", "passed"), "vertical_tab": ("U+000B", "U+000B"), "crlf_cell": ("made", "passed"),
    "lone_cr_cell": ("made", "passed"), "invisible": ("U+200B", "U+200B"), "nonbreaking_blank": ("U+00A0", "U+00A0"),
    "later_chapter": ("import of a later chapter: exp.nb9999", "No module named 'exp"),
    "private_name": ("import of a private name: _x of chapter 00", "cannot import name '_x' | No module named 'exp"),
    "nested_too_deep": ("too many nested parentheses", "too many nested parentheses"),
    **{key: ("made", "passed") for key in ("look_alikes", "private_names", "only_comments", "line_ends_in_a_string",
                                           "dangerous_names", "long_line", "surrogate_pair")},
    # names, links, permissions
    **{key: ("made", "passed") for key in ("blanks", "unicode_name", "number_alone", "capital_letter", "long_number",
                                           "long_name", "dots", "reserved_nul", "link_inside", "link_outside",
                                           "executable")},
    **{key: (NAME, "passed") for key in ("decomposed", "right_to_left", "quotes", "glob_signs", "backslash",
                                         "escape_codes",
                                         "line_in_name", "colon", "dollar", "undecodable", "lock_file")},
    **{key: ("warning: not exported: its name begins with no chapter number", "passed")
       for key in ("leading_dash", "option_name", "no_number", "one_digit", "superscript", "arabic_digits",
                   "reserved_con")},
    "capital_suffix": ("none", "unseen"), "hidden": ("none", "unseen"),
    **{key: ("two notebooks for one module, exp/nb", "passed")
       for key in ("same_number", "same_but_for_case", "same_letter_but_for_case")},
    "link_dangling": ("cannot be read: No such file", "cannot be read: No such file"),
    "link_loop": ("cannot be read: Too many levels", "cannot be read: Too many levels"),
    "link_to_folder": ("cannot be read: not a file", "unseen"), "folder": ("cannot be read: not a file", "unseen"),
    "link_to_zeros": ("cannot be read: not a file", "cannot be read: not a file"),
    "link_to_terminal": ("cannot be read: not a file", "cannot be read: not a file"),
    "link_to_process": ("cannot be read: ", "cannot be read: "), "pipe": ("cannot be read: not a file",) * 2,
    "folder_as_module": ("is a link or a folder: nothing is written there", "passed"),
    "read_only": ("made", "not saved: the file is read-only"), "read_only_prose": ("none", "passed"),
    # sizes
    **{key: ("made", "passed") for key in ("thousands_of_cells", "heavy_output", "heavy_prose", "heavy_code")},
    "heavy_text": ("none", "passed"), "many_ids_alike": ("duplicate cell id, also that of cell 1", "passed"),
}

# Code that misuses its kernel: the exporter makes a module of each (it executes nothing), the runner says this.
RUNNER = {
    "exits": "line 3: the kernel ended: exit status 3", "exits_in_a_thread": "the kernel ended: exit status 4",
    "kills_itself": "line 3: " + KILLED + "SIGKILL", "aborts": "line 3: " + KILLED + "SIGABRT",
    "segfaults": "line 3: " + KILLED + "SIGSEGV", "kills_its_group": KILLED + "SIGKILL",
    "kills_its_parent": KILLED + "SIGKILL", "stops_itself": LIMIT, "stops_its_parent": "passed",
    "interrupts_itself": "line 3: KeyboardInterrupt", "hangs": "line 2: " + LIMIT,
    "ignores_interrupts": "line 4: " + LIMIT,
    "blocks_signals": LIMIT, "hangs_at_exit": "passed", "exits_twice": "SystemExit: again",
    "asks_to_exit": "exit() ends the kernel", "shuts_down": "passed | the kernel ended",
    "stops_the_loop": "the kernel ended",
    "closes_all_files": KILLED + " | the kernel ended | " + LIMIT, "closes_stdout": "line 4: OSError | passed",
    "stdout_none": LIMIT, "stdout_number": LIMIT, "stdout_file": "passed", "writes_bytes": "passed", "floods": "passed",
    "floods_stderr_of_a_child": "passed", "endless_line": "passed", "endless_backspaces": "passed",
    "forks_and_stays": "passed | the kernel ended | " + LIMIT, "many_children": "passed", "threads_that_stay": "passed",
    "thread_that_prints": "passed", "deletes_itself": OWN, "renames_itself": OWN, "becomes_a_folder": "not saved",
    "becomes_a_link": OWN, "makes_itself_read_only": "not saved: the file is read-only",
    "appends_to_itself": "not saved: it changed while this ran", "changes_folder": "passed",
    "folder_vanishes": "passed", "removes_the_connection": "cell 3 (id c3), line 1: ZeroDivisionError | " + LIMIT,
    "forges_the_records": "passed", "forges_the_error": "cell 2 (id c2), line 1: F: x", "forges_messages": "passed",
    "odd_displays": "ValueError: Can't clean for JSON", "weird_error": "OSError", "error_of_odd_type": "cell 1 (id c1)",
    "error_in_a_circle": "line 4: ValueError: a", "error_chain": "line 5: ValueError: 2999",
    "error_with_odd_lines": "cell 1 (id c1)", "error_with_a_worded_line": "cell 1 (id c1)",
    "error_far_below": "SyntaxError: far", "error_many_lines": "line 2: ValueError",
    "raises_interrupt": "line 2: KeyboardInterrupt", "raises_generator_exit": "line 2: GeneratorExit: x",
    "raises_base": "line 3: B: x", "recursion": "line 3: RecursionError", "recursion_unlimited": KILLED + "SIGSEGV",
    "redefines_builtins": "the kernel ended | " + LIMIT, "clears_modules": LIMIT + " | the kernel ended",
    "replaces_the_shell": LIMIT + " | the kernel ended", "audits": "the kernel ended | RuntimeError: no | " + LIMIT,
    "traces": "RuntimeError: no", "asks": "line 2: asks for input, and nobody is there", "breaks": "passed",
    "no_memory": "line 2: MemoryError", "leaks": "GB, more than its 1 GB (--memory)",
    "few_files": "cell 2 (id c2) | the kernel ended", "cpu_limit": KILLED, "no_disk": "cell 2 (id c2) | cell 1 (id c1)",
    "umask": "passed", "leaves_files": "it leaves files outside _out/: ../stray0 (new)",
    "tagged_but_dies": "the kernel ended: exit status 0", "speaks_like_the_runner": "line 3: ValueError: x",
    "many_outputs": "passed",
}
TABLE |= {key: ("made", said) for key, said in RUNNER.items()}
CHANGE_THEMSELVES = {"deletes_itself", "renames_itself", "becomes_a_folder", "becomes_a_link", "appends_to_itself"}


def test_the_table_and_the_corpus_are_one():
    assert set(CASES) <= set(TABLE) and set(TABLE) == {key for group in GROUPS.values() for key in group()}
    assert len(CASES) >= 60 and set(RUNNER) == set(GROUPS["misbehaved"]())


def project(root: Path, cases: dict) -> dict[str, Path]:
    "A project with the notebooks of `cases`; their paths by key."
    (root / "nbs").mkdir(parents=True)
    for name in ("settings.ini", "pyproject.toml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    return write(root / "nbs", cases)


def state(folder: Path) -> dict[str, object]:
    "What there is below `folder`: the contents of files, where links lead."
    found = {}
    for where, folders, files in os.walk(folder):
        for path in (Path(where, name) for name in folders + files):
            found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
    return found


# -- the exporter ------------------------------------------------------------------------------------------------------

def export(*args) -> tuple[int, str]:
    "Exit status and all that the exporter says."
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = notebook2script.main([str(a) for a in args])
    return status, said.getvalue()


@pytest.mark.parametrize("key", CASES)
def test_exporter_alone_with(key, tmp_path, monkeypatch):
    root, expected = tmp_path / "a" / "project", TABLE[key][0]
    path = project(root, {key: CASES[key]})[key]
    monkeypatch.chdir(root)
    before = state(root)
    status, said = export()
    warned = expected.removeprefix("warning: ")
    assert status == (0 if expected in ("made", "none") or warned != expected else 1), said
    assert expected in ("made", "none") or warned in said
    assert "Traceback" not in said and all(ord(c) > 31 or c == "\n" for c in said), said
    after = state(root)
    assert {p: after.get(p) for p in before} == before     # no notebook is touched
    if status == 1:
        assert after == before
        return
    made = [Path(p) for p in after.keys() - before.keys() if p.endswith((".py", ".pyi"))]
    assert sum(p.parent.name == "exp" for p in made) == (expected == "made" or key == "mark_twice"), said
    assert {p.name for p in made if p.parent.name == "groundup"} == {"__init__.py", "__init__.pyi"}
    for module in made:
        compile(module.read_bytes(), module, "exec")
    assert export("--check") == (0, "".join(re.findall("warning: .*\n",
                                                       said)) + "every module is as its notebook says\n")
    assert export("--update")[0] == export("--force")[0] == export()[0] == 0
    assert state(root) == after and os.path.lexists(path)


def test_exporter_with_all_of_them(tmp_path):
    root = tmp_path / "a" / "project"
    paths = project(root, CASES)
    before = state(root)
    for flags in [], ["--update"], ["--force"]:
        done = run_tool("notebook2script", *flags, cwd=root)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        assert done.stderr.endswith(" faults: nothing was written\n") and state(root) == before
    bad = [key for key in CASES if TABLE[key][0] not in ("made", "none") and "warning" not in TABLE[key][0]]
    for key in bad:
        names = paths[key].name, ascii(paths[key].name)[1:-1], f"nb{paths[key].name[:3]}.py"
        assert any(TABLE[key][0] in t and any(n in t for n in names) for t in done.stderr.splitlines()), key
    good = [str(paths[key]) for key in CASES if TABLE[key][0] == "made"]
    done = run_tool("notebook2script", *good, cwd=root)
    assert done.returncode == 0 and re.fullmatch("(warning: .*lines in an exported cell.*\n)*", done.stderr), done
    assert done.stdout.endswith(f"\n{len(good)} modules, {len(good)} files changed\n")
    after = state(root)
    assert {p: after.get(p) for p in before} == before
    figure("hostile notebooks and the exporter", notebooks=len(CASES), refused=len(bad), tracebacks=0, half_written=0)


# -- the runner --------------------------------------------------------------------------------------------------------

class Run:
    "A run of the runner over some cases with --save: what it said, and what was there before and after."
    def __init__(self, root: Path, keys: list[str], *args):
        self.root, self.keys, self.mark = root, keys, uuid.uuid4().hex
        self.paths = project(root, {key: CASES[key] for key in keys})
        self.before, self.folder = state(root), state(root / "nbs").keys()
        with open(root.with_suffix(".log"), "wb") as log:
            self.proc = subprocess.Popen(
                [sys.executable, ROOT / "tools" / "run_notebook.py", "--save", "--device", "cpu", *args], cwd=root,
                env=os.environ | {"RUNNER_TEST": self.mark}, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait(self) -> None:
        self.proc.wait(timeout=900)
        self.left = [p.info for p in psutil.process_iter(["pid", "cmdline", "environ", "status"])
                     if (p.info["environ"] or {}).get("RUNNER_TEST") == self.mark and p.info["status"] != "zombie"]
        self.said = self.root.with_suffix(".log").read_bytes().decode("utf-8")
        self.after = state(self.root)
        self.lines = {}
        for line in self.said.splitlines():
            if m := re.match(r"(passed  |FAILED  )'?(.+?\.ipynb)", line):
                self.lines.setdefault(m[2], line)

    def line(self, key: str) -> str:
        "What it said about a case: its first headline, or that it passed."
        shown = os.path.relpath(self.paths[key], self.root)
        shown = shown if shown.isprintable() else ascii(shown)[1:-1]
        return self.lines.get(shown, "unseen")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "By key, the run that met the case."
    root = tmp_path_factory.mktemp("hostile") / "a"
    workers = max(2, (os.cpu_count() or 1) // 2)
    both = [Run(root / "hang", [k for k in RUN if CASES[k].hangs], "--timeout", "5", "--workers", "4"),
            Run(root / "calm", [k for k in RUN if not CASES[k].hangs], "--timeout", "120", "--memory", "1",
                "--workers", str(workers))]
    try:
        for run in both:
            run.wait()
        yield {key: run for run in both for key in run.keys}
    finally:
        for run in both:
            run.proc.kill()


@pytest.mark.parametrize("key", RUN)
def test_runner_with(key, runs):
    run, path = runs[key], str(runs[key].paths[key])
    line, expected = run.line(key), TABLE[key][1].split(" | ")
    said = "passed" if line.startswith("passed  ") else line
    assert any(e in said for e in expected), line
    if key in CHANGE_THEMSELVES:
        return
    before, after = run.before.get(path), run.after.get(path)
    if said != "passed":
        assert after == before
    elif isinstance(before, bytes):                        # whole, and nothing lost but outputs
        old, new = json.loads(before.decode("utf-8-sig")), json.loads(after.decode("utf-8"))
        assert [source(c) for c in new["cells"]] == [source(c) for c in old["cells"]]
        assert before == after or "· saved" in line


def source(cell: dict) -> tuple:
    return cell["cell_type"], "".join(cell["source"])


def test_runner_leaves_nothing_behind(runs):
    for run in {id(r): r for r in runs.values()}.values():
        assert run.left == [] and run.proc.returncode == 1
        assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"run_nb-{run.proc.pid}-*"))
        assert not re.search(r'File ".*(run_notebook|runner[/\\]\w+|common)\.py"', run.said)
        assert "the runner itself failed" not in run.said
        assert all(c in "\t\n" or c.isprintable() for c in re.sub("[\u0080-\U0010ffff]", "", run.said))
        made = {p for p in run.after.keys() - run.before.keys() if "/stray" not in p and "_out" not in p}
        assert made == set(), made                         # no temporary file, no half a notebook
    keys = list(runs)
    figure("hostile notebooks and the runner", notebooks=len(keys), kernels_misused=len(set(keys) & set(RUNNER)),
           faults_of_ours=0, tracebacks=0, half_written=0, orphans=0)
