"""A corpus of hostile notebooks: files wrong or awkward in every way we know, and cells that misuse their kernel.

    python tests/tools/hostile.py FOLDER      writes them all, to look at or to try by hand

What exporter and runner must do with each is the table in test_hostile.py. Nothing here is run by writing it; the cells
of `KERNELS` are dangerous to run without the runner around them.
"""
import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figures import times

CELLS = times(200, 5_000)                                  # of the longest notebook
OUTPUT = times(1_000_000, 50_000_000)                      # characters of output in the heaviest one
PRINTED = times(4_000_000, 100_000_000)                    # characters that one cell prints
CODE = "#export\nimport math\n\ndef f(x):\n    return math.sqrt(x)"
POSIX, LINUX = os.name == "posix", sys.platform.startswith("linux")


@dataclass
class Case:
    "A notebook: what makes its file, the file's name (`{n}` is a number of its own), and what the runner needs for it."
    make: Callable[[Path], None]
    name: str = "{n}_{key}.ipynb"
    quick: bool = True                                     # does the runner meet it in the quick form too?
    hangs: bool = False                                    # goes into the run with short limits
    posix: bool = False                                    # cannot be made on Windows,
    linux: bool = False                                    # or only on Linux


def cell(source: str | list, kind: str = "code", **changes) -> dict:
    "A cell as Jupyter writes it, but for `changes`; what is changed to `...` is left out."
    made = {"cell_type": kind, "id": None, "metadata": {}, "source": source}
    made |= {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {k: v for k, v in (made | changes).items() if v is not ...}


def book(*cells, **changes) -> dict:
    "A notebook's document; ids are added to cells that say nothing of theirs."
    made = [cell(c) if isinstance(c, str) else c for c in cells or ("#export\nx = 1",)]
    made = [c | {"id": f"c{i}"} if isinstance(c, dict) and c.get("id", 0) is None else c for i, c in enumerate(made, 1)]
    doc = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | changes
    return {k: v for k, v in doc.items() if v is not ...}


def text(doc, **how) -> str:
    return json.dumps(doc, **{"indent": 1, "ensure_ascii": False} | how) + "\n"


def file(content: bytes | str | dict, **how) -> Case:
    "The case of a file with this content."
    content = text(content) if isinstance(content, dict) else content
    data = content if isinstance(content, bytes) else content.encode()
    return Case(lambda path: path.write_bytes(data), **how)


def cells(*sources, **how) -> Case:
    return file(book(*sources), **how)


GOOD = text(book(cell("# Tïtle", "markdown"), CODE, "print(f(4), 'ü→𝛼')"))


# -- files that are no notebooks, and odd encodings --------------------------------------------------------------------

def damaged() -> dict[str, Case]:
    plain = GOOD.replace("→𝛼", "")
    half = '"x = \'\\ud800\'"'
    return {
        "empty": file(b""),
        "blank": file("\ufeff \n\n"),
        "nul_bytes": file(b"\0" * 4096),
        "utf16": file(GOOD.encode("utf-16")),
        "utf16_without_bom": file(GOOD.encode("utf-16-le")),
        "utf32": file(GOOD.encode("utf-32")),
        "latin1": file(plain.encode("latin-1")),
        "cut_in_a_character": file(GOOD.encode()[:GOOD.encode().index("→".encode()) + 1]),
        "bad_byte_in_an_output": file(text(book(cell("1", outputs=[stream("é")]))).encode("latin-1")),
        "surrogate_as_utf8": file(GOOD.encode().replace("𝛼".encode(), b"\xed\xa0\x80")),
        "bom": file("\ufeff" + GOOD),
        "two_boms": file("\ufeff\ufeff" + GOOD),
        "crlf_file": file(GOOD.replace("\n", "\r\n"), quick=False),
        "old_mac_file": file(GOOD.replace("\n", "\r"), quick=False),
        "ascii_escapes": file(text(json.loads(GOOD), ensure_ascii=True), quick=False),
        "one_line": file(text(json.loads(GOOD), indent=None, separators=(",", ":")), quick=False),
        "half_character_exported": file(text(book("#export\nH = 'H'")).replace("'H'", "'\\ud800'")),
        "half_character_in_code": file(text(book("x = 1")).replace('"x = 1"', half)),
        "half_character_in_prose": file(text(book(cell("H", "markdown"), "1")).replace('"H"', '"\\udfff"')),
        "nul_in_code": cells("#export\nx = '\0'"),
        "gzipped": file(gzip.compress(GOOD.encode(), mtime=0)),
        "python_file": file(CODE),
        "html_page": file("<!DOCTYPE html><html><body>404</body></html>"),
        "cut_short": file(GOOD[:len(GOOD) // 2]),
        "cut_by_one": file(GOOD.rstrip()[:-1]),
        "written_twice": file(GOOD + GOOD),
        "trailing_comma": file(GOOD.replace("]\n", "],\n", 1).replace('"nbformat_minor": 5', '"nbformat_minor": 5,')),
        "single_quotes": file(str(json.loads(GOOD))),
        "conflict": file(GOOD.replace(' "nbformat": 4', '<<<<<<< HEAD\n "nbformat": 4,\n=======\n>>>>>>> b\n "a": 1')),
        "conflict_in_a_cell": cells("#export\n<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> b"),
        "too_deep": file("[" * 100_000),
        "deep_metadata": file(text(book()).replace('"metadata": {}',
                                                   '"metadata": {"a": ' + "[" * 300 + "]" * 300 + "}")),
        "huge_number": file(text(book()).replace(' "metadata": {}', ' "metadata": {"a": ' + "9" * 5000 + "}")),
        "not_a_number": file(text(book("1", metadata={"a": float("nan"), "b": float("inf")}))),
        "keys_twice": file(GOOD.replace(' "metadata": {},\n "nbf',
                                        ' "nbformat": 4, "metadata": {}, "metadata": {},\n "nbf')),
    }


def stream(said, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": said}


# -- notebooks whose parts are not what they should be -----------------------------------------------------------------

def misshapen() -> dict[str, Case]:
    one = "#export\nx = 1"
    junk = [1, {}, {"output_type": 5}, {"output_type": "display_data", "data": []}, {"output_type": "stream"}, None]
    return {
        "a_list": file("[1]"), "a_number": file("3"), "a_string": file('"cells"'), "null": file("null"),
        "an_object": file("{}"),
        "no_cells": file(book(cells=...)), "cells_object": file(book(cells={})), "cells_null": file(book(cells=None)),
        "no_cell_at_all": file(book(cells=[])),
        "no_format": file(book(one, nbformat=...)), "format_3": file({"nbformat": 3, "worksheets": [{"cells": []}]}),
        "format_3_flat": file(book(one, nbformat=3)),
        "format_5": file(book(one, nbformat=5)), "format_text": file(book(one, nbformat="4")),
        "format_float": file(text(book(one)).replace('"nbformat": 4', '"nbformat": 4.0')),
        "format_true": file(book(one, nbformat=True)),
        "format_4_0": file(book(cell(one, id=...), nbformat_minor=0)),
        "minor_text": file(book(one, nbformat_minor="five")),
        "minor_99": file(book(one, nbformat_minor=99), quick=False),
        "minor_missing": file(book(one, nbformat_minor=...), quick=False),
        "cell_number": file(book(one, 7)), "cell_null": file(book(one, None)), "cell_list": file(book(one, [])),
        "cell_empty": file(book(one, {})),
        "heading_cell": file(book(one, cell("x", "heading"))),
        "type_list": file(book(one, cell("x", cell_type=["code"]))),
        "source_number": file(book(cell(1))), "source_null": file(book(cell(None))),
        "source_mixed": file(book(cell(["x = 1\n", 2]))), "source_missing": file(book(one, cell(...))),
        "source_object": file(book(cell({"a": 1}))),
        "metadata_list": file(book(one, metadata=[])), "metadata_null": file(book(one, metadata=None)),
        "metadata_missing": file(book(one, metadata=...), quick=False),
        "cell_metadata_list": file(book(cell(one, metadata=[]))),
        "cell_metadata_missing": file(book(cell(one, metadata=...)), quick=False),
        "tags_text": file(book(cell(one, metadata={"tags": "slow"}))),
        "tags_numbers": file(book(cell(one, metadata={"tags": [1, None, {}]}))),
        "outputs_object": file(book(cell(one, outputs={}))), "outputs_missing": file(book(cell(one, outputs=...))),
        "outputs_junk": file(book(one, cell("1", outputs=junk))),
        "outputs_junk_of_a_skipped_cell": file(book(one, cell("#slow\n1", outputs=junk))),
        "outputs_of_prose": file(book(one, cell("x", "markdown", outputs=7, execution_count="x"))),
        "count_text": file(book(cell(one, execution_count="x"))),
        "attachments_number": file(book(one, cell("x", "markdown", attachments=5))),
        "widgets_junk": file(book(one, metadata={"widgets": [1]})),
        "kernelspec_list": file(book(one, metadata={"kernelspec": [], "language_info": 3})),
        "kernelspec_numbers": file(book(one, metadata={"kernelspec": {"name": 5, "language": 3}})),
        "in_julia": file(book("x = 1", metadata={"kernelspec": {"name": "julia", "language": "julia"}})),
        "ids_missing": file(book(cell(one, id=...), cell("x", id=...))),
        "ids_duplicate": file(book(cell(one, id="a"), cell("x", id="a"))),
        "ids_illegal": file(book(cell(one, id="a b\n"))), "ids_number": file(book(cell(one, id=5))),
        "ids_empty": file(book(cell(one, id=""))), "ids_long": file(book(cell(one, id="x" * 65))),
        "ids_unicode": file(book(cell(one, id="ünï"))), "ids_list": file(book(cell(one, id=[1]))),
        "ids_differ_in_case": file(book(cell(one, id="a"), cell("x", id="A")), quick=False),
        "extra_keys": file(book(cell(one, extra={"a": [1]}), extra=5), quick=False),
    }


# -- marks in odd places -----------------------------------------------------------------------------------------------

def marked() -> dict[str, Case]:
    made = {
        "mark_after_blank_lines": cells("\n \t\n\n#export\nx = 1"), "mark_spaced": cells("  # export  \nx = 1"),
        "mark_quarto": cells("#|export\nx = 1"), "mark_capitals": cells("# EXPORT\nx = 1"),
        "mark_second_line": cells("x = 1\n#export\ny = 1"), "mark_twice": cells("#export\n#export\nx = 1"),
        "mark_with_argument": cells("#export nb07\nx = 1"), "mark_misspelt": cells("#exprot\nx = 1"),
        "mark_in_markdown": file(book(cell("#export\nx", "markdown"))),
        "mark_in_raw": file(book(cell("#export\nx", "raw"))),
        "mark_in_a_string": cells("s = '''\n#export\n'''"), "mark_alone": cells("#export", "#export\n\n \n"),
        "mark_and_form_feed": cells("#export\fx = 1"), "mark_and_next_line": cells("#export\x85x = 1"),
        "mark_and_line_separator": cells("#export\u2028x = 1"), "mark_wide": cells("＃export\nx = 1"),
        "mark_after_bom": cells("\ufeff#export\nx = 1"),
        "mark_in_magic": cells("%%time\n#export\nx = 1"), "magic_exported": cells("#export\n%%time\nx = 1"),
        "shell_exported": cells("#export\n!true"), "help_exported": cells("#export\nlen?"),
        "syntax_error": cells("#export\ndef f(:\n    pass"), "await_exported": cells("#export\nawait f()"),
        "future": cells("#export\nfrom __future__ import annotations\nx = 1", "#export\ndef f(a: b): pass"),
        "future_late": cells("#export\nx = 1", "#export\nfrom __future__ import annotations"),
        "star_import": cells("#export\nfrom math import *\nx = pi"),
        "all_assigned": cells("#export\nx = 1\n__all__ = ['x']"),
        "all_extended": cells("#export\nx = 1\n__all__ += ['y']"),
        "all_appended": cells("#export\nx = 1\n__all__.append('y')"),
        "all_deleted": cells("#export\nx = 1\ndel __all__"),
        "all_imported": cells("#export\nfrom string import __all__"),
        "all_in_a_function": cells("#export\ndef f():\n    global __all__\n    __all__ = []"),
        "all_read": cells("#export\nfrom string import __all__ as a\ndef f(): return __all__[0], len(__all__), a"),
        "all_changed": cells("#export\nx = 1\n__all__[0] = 'y'"), "all_defined": cells("#export\ndef __all__(): pass"),
        "defined_twice": cells("#export\ndef f(): pass", "#export\nf = 1"),
        "statement_runs_on": cells("#export\nx = (1,", "#export\n2)"),
        "string_runs_on": cells("#export\ns = '''", "#export\n'''"),
        "backslash_at_the_end": cells("#export\nx = 1 + \\", "#export\n2"), "decorator_at_the_end": cells(
            "#export\nimport functools\n@functools.cache", "#export\ndef f(): pass"),
        "own_header": cells("#export\nx = 1\n# %% nbs/{name} #c9 (12345678)\ny = 1"),
        "coding_line": cells("#export\n# -*- coding: latin-1 -*-\nx = 'ü'"),
        "tabs": cells("#export\nif True:\n\tx = 1\n\ty = 2"),
        "tabs_and_blanks": cells("#export\nif 1:\n\tx = 1\n        y = 2"),
        "form_feeds": cells("#export\n\fx = 1\n\f\ndef f():\n    \f return 1"),
        "vertical_tab": cells("#export\nx = 1\v\ny = 2"),
        "crlf_cell": cells("#export\r\nx = 1\r\ns = '''a\r\nb'''"), "lone_cr_cell": cells("#export\rx = 1\ry = 2"),
        "invisible": cells("#export\nx\u200b = 1"), "nonbreaking_blank": cells("#export\nx =\u00a01"),
        "look_alikes": cells("#export\nﬁ = 1\nfi = ﬁ\nµ = 2"), "private_names": cells("#export\n__x = _y = __z__ = 1"),
        "only_comments": cells("#export\n# nothing\n'only words'"),
        "line_ends_in_a_string": cells("#export\ns = 'a\u2028b\x85c\x1cd'"),
        "dangerous_names": cells('#export\nclass A: pass\nA.__doc__ = """*/ ]]> """'),
        "later_chapter": cells("#export\nfrom exp.nb9999 import x"),
        "private_name": cells("#export\nfrom exp.nb00 import _x"),
        "nested_too_deep": cells("#export\nx = " + "(" * 300 + ")" * 300),
        "long_line": cells("#export\nx = [" + "1, " * 20_000 + "]"),
        "surrogate_pair": cells("#export\ns = '\\ud83d\\ude00'"),
    }
    def own_header(path: Path) -> None:
        path.write_text(text(book(f"#export\nx = 1\n# %% nbs/{path.name} #c9 (12345678)\ny = 1")), encoding="utf-8")
    quick = {"mark_in_magic", "mark_after_bom", "crlf_cell", "lone_cr_cell", "form_feeds", "syntax_error"}
    for key, case in made.items():
        case.quick = key in quick
    return made | {"own_header": Case(own_header, quick=False)}


# -- names, links, permissions, sizes ----------------------------------------------------------------------------------

def named() -> dict[str, Case]:
    def both(other: str) -> Callable:
        def make(path: Path) -> None:
            path.write_text(GOOD, encoding="utf-8")
            (path.parent / other.format(n=path.name[:3])).write_text(GOOD, encoding="utf-8")
        return make

    def good(name: str, **how) -> Case:
        return file(text(book(cell("only prose", "markdown"), cell(CODE, metadata={"tags": ["skip-execution"]}))),
                    name=name, **how)
    return {
        "blanks": good("{n}_two  words .ipynb"), "unicode_name": good("{n}_ünï_名前_𝛼.ipynb"),
        "decomposed": good("{n}_u\u0308.ipynb"), "right_to_left": good("{n}_\u202egnp.ipynb"),
        "leading_dash": good("-{n}_x.ipynb"), "option_name": good("--help.ipynb"), "no_number": good("draft.ipynb"),
        "one_digit": good("5_x.ipynb"), "number_alone": good("{n}.ipynb"), "capital_letter": good("{n}A_x.ipynb"),
        "superscript": good("5².ipynb"), "arabic_digits": good("٠٥_x.ipynb"),
        "long_number": good("9" * 200 + "_x.ipynb"),
        "long_name": file(GOOD, name="{n}_" + "x" * 240 + ".ipynb", posix=True),
        "dots": good("{n}_a..b.ipynb"), "quotes": good("{n}_a'b\".ipynb", posix=True),
        "glob_signs": good("{n}_[a]*?.ipynb", posix=True), "backslash": good("{n}_..\\..\\x.ipynb", posix=True),
        "escape_codes": good("{n}_\x1b[31mred.ipynb", posix=True),
        "line_in_name": good("{n}_a\nFAILED  b.ipynb", posix=True),
        "colon": good("{n}_a:b.ipynb", posix=True), "dollar": good("{n}_$(touch x).ipynb", posix=True),
        "undecodable": good("{n}_\udcff.ipynb", linux=True),
        "reserved_con": good("con.ipynb", posix=True), "reserved_nul": good("{n}_nul.ipynb"),
        "capital_suffix": good("{n}_x.IPYNB"), "hidden": good(".{n}_x.ipynb"),
        "lock_file": good("~${n}_x.ipynb", posix=True),
        "same_number": Case(both("{n}_other.ipynb"), quick=False),
        "same_but_for_case": Case(both("{n}_SAME_but_for_case.ipynb"), quick=False, linux=True),
        "same_letter_but_for_case": Case(both("{n}B_x.ipynb"), name="{n}b_x.ipynb", quick=False, linux=True),
    }


def linked() -> dict[str, Case]:
    def to(target: str, content: str = "") -> Case:
        def make(path: Path) -> None:
            place = path.parent / target.format(name=path.name)
            if content:
                place.parent.mkdir(exist_ok=True)
                place.write_text(content, encoding="utf-8")
            path.symlink_to(place)
        return Case(make, posix=True, quick=not content)

    def mode(bits: int, content: str) -> Case:
        def make(path: Path) -> None:
            path.write_text(content, encoding="utf-8")
            path.chmod(bits)
        return Case(make, posix=True)

    def folder(path: Path) -> None:
        path.mkdir()
        (path / "inside.txt").write_text("x")

    def busy_name(path: Path) -> None:
        "A folder where the module should be written."
        path.write_text(GOOD, encoding="utf-8")
        (path.parent.parent / "exp" / f"nb{path.name.split('_')[0]}.py").mkdir(parents=True)
    return {
        "link_inside": to("_real/{name}", GOOD), "link_outside": to("../../outside/{name}", GOOD),
        "link_dangling": to("nowhere.ipynb"), "link_loop": to("{name}"), "link_to_folder": to("."),
        "link_to_zeros": to("/dev/zero"), "link_to_terminal": to("/dev/tty"), "link_to_process": to("/proc/self/mem"),
        "pipe": Case(getattr(os, "mkfifo", None), posix=True), "folder": Case(folder),
        "folder_as_module": Case(busy_name, quick=False),
        "read_only": mode(0o444, GOOD), "read_only_prose": mode(0o444, text(book(cell("prose", "markdown")))),
        "executable": mode(0o755, GOOD),
    }


def large() -> dict[str, Case]:
    def one(i: int) -> str:
        "In ten cells: one that is exported, two that use it, and seven empty ones."
        if i % 10 == 0:
            return f"#export\ndef f{i}(x):\n    return x + {i}"
        return f"f{i // 10 * 10}(1)" if i % 10 > 7 else ""
    picture = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo" * (OUTPUT // 11)}, "metadata": {}}
    return {
        "thousands_of_cells": cells(*map(one, range(CELLS))),
        "heavy_output": file(book("#export\nx = 1", cell("#slow\n1", outputs=[picture])), quick=True),
        "heavy_text": file(book(cell("1", outputs=[stream(["a line of output\n"] * (OUTPUT // 17))])), quick=False),
        "heavy_prose": file(book(cell("word " * (OUTPUT // 10), "markdown"), "#export\nx = 1"), quick=False),
        "heavy_code": cells("#export\n" + "\n".join(f"x{i} = {i}" for i in range(times(2_000, 20_000))), quick=False),
        "many_ids_alike": file(book(*[cell("", id="same") for _ in range(CELLS)])),
    }


# -- cells that misuse their kernel ------------------------------------------------------------------------------------

KERNELS = r"""
=== exits
import os
os._exit(3)
=== exits_in_a_thread
import os, threading, time
threading.Timer(0.2, os._exit, [4]).start()
time.sleep(600)
=== kills_itself
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
=== aborts
import os
os.abort()
=== segfaults
import ctypes
ctypes.string_at(1)
=== kills_its_group
import os, signal
os.killpg(0, signal.SIGKILL)
=== kills_its_parent
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
while True: pass
=== stops_itself
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
=== stops_its_parent
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
x = 1
=== interrupts_itself
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(600)
=== hangs
while True: pass
=== ignores_interrupts
while True:
    try:
        while True: pass
    except BaseException: pass
=== blocks_signals
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
time.sleep(600)
=== hangs_at_exit
import atexit, time
atexit.register(time.sleep, 600)
=== exits_twice
import sys
try:
    sys.exit(1)
finally:
    raise SystemExit('again')
=== asks_to_exit
get_ipython().ask_exit()
x = 1
---
x
=== shuts_down
get_ipython().kernel.do_shutdown(False)
x = 1
---
import time
time.sleep(1)
=== stops_the_loop
import asyncio
asyncio.get_event_loop().stop()
---
x = 1
=== closes_all_files
import os
os.closerange(0, 1000)
---
x = 1
=== closes_stdout
import os, sys
os.close(1); os.close(2)
sys.stdout.close()
print('x')
---
print('y')
=== stdout_none
import sys
sys.stdout = sys.stderr = None
---
print(1)
x = 1
=== stdout_number
import sys
print('x' * 300_000)
sys.stdout = sys.stderr = 5
---
x = 1
=== stdout_file
import io, sys
print('x' * 300_000)
sys.stdout = io.StringIO()
---
print('lost')
=== writes_bytes
import os, sys
os.write(1, bytes(range(256)) * 40)
os.write(2, b'\xff\x00\x1b[2J')
---
print('\x00\x1b[31m\udcff\ud800\x08\r\x0c')
=== floods
for i in range({PRINTED} // 1000): print('x' * 999)
=== floods_stderr_of_a_child
import subprocess, sys
subprocess.run([sys.executable, '-c', 'print("x" * {PRINTED})'])
=== endless_line
print('x' * {PRINTED}, end='')
=== endless_backspaces
print('x\b' * 300_000 + '\r' * 300_000, end='')
=== forks_and_stays
import os
x = os.fork()
---
x
=== many_children
import subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
for i in range(20):
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
=== threads_that_stay
import threading, time
for i in range(50):
    threading.Thread(target=time.sleep, args=[600]).start()
=== thread_that_prints
import threading, time
def say():
    while True:
        print('again'); time.sleep(0.001)
threading.Thread(target=say, daemon=True).start()
---
time.sleep(0.1)
---
time.sleep(0.1)
---
time.sleep(0.1)
=== deletes_itself
import os
os.remove('{name}')
=== renames_itself
import os
os.makedirs('../_out', exist_ok=True)
os.rename('{name}', '../_out/gone')
=== becomes_a_folder
import os
os.remove('{name}')
os.mkdir('{name}')
=== becomes_a_link
import os
os.remove('{name}')
os.symlink('nowhere', '{name}')
=== makes_itself_read_only
import os
os.chmod('{name}', 0o444)
=== appends_to_itself
import os
os.system('echo >> {name}')
=== changes_folder
import os
os.chdir('/')
---
x = 1
=== folder_vanishes
import os, tempfile
d = tempfile.mkdtemp()
os.chdir(d)
os.rmdir(d)
---
x = 1
=== removes_the_connection
import os, shutil
shutil.rmtree(os.path.dirname(os.environ['IPYTHONDIR']))
---
x = 1
---
1/0
=== forges_the_records
import os
d = os.path.dirname(os.environ['IPYTHONDIR'])
rows = '[]', '[1]', '{]', '["path"]', '["path", 5, 6]', '["path", "a\\u0000b", null]', '["start", "x"]', ''
for name, text in ('writes.log', '\n'.join(rows)), ('pid', 'x'), ('fault.log', '\0'):
    open(d + '/' + name, 'a').write(text)
=== forges_the_error
import os
class F(Exception):
    def __str__(self):
        return 'x'
f = os.path.join(os.path.dirname(os.environ['IPYTHONDIR']), 'error.json')
def forge(r): open(f, 'w').write('{"line": [1], "text": 5}')
get_ipython().events.register('post_run_cell', forge)
---
raise F
=== forges_messages
k = get_ipython().kernel
def send(kind, **content): k.session.send(k.iopub_socket, kind, content, parent=k.get_parent(), ident=b'stream')
send('stream', name=5, text='five'); send('stream', name='stdout', text=None); send('stream', name='stdout', text=[1])
send('stream', text='no name'); send('stream'); send('display_data', data=5, metadata=[]); send('display_data')
send('execute_result', data={'text/plain': 5}, metadata={}, execution_count='x'); send('error', ename=1, evalue=None)
send('display_data', data={'text/plain': ['a', 1]}, metadata={}); send('clear_output', wait='x'); send('comm_open')
send('last_words', number='../x'); send('last_words', number=-1); send('last_words')
send('execute_input', execution_count='many'); send('update_display_data', transient=3); send('none', x=float('nan'))
send('stream', name='stdout', text='x'); send('stream', name=None, text='y'); send('status', execution_state='dead')
---
x = 1
=== odd_displays
from IPython.display import display
d = lambda **k: display(k, raw=True)
d(**{'text/plain': 5, 'x/y': None})
d(**{'application/json': [float('nan'), b'x']})
d(**{'image/png': object()})
display({1: 2}, raw=True)
display(1, metadata=[3])
=== weird_error
class Weird(Exception):
    def __str__(self): raise MemoryError
    __repr__ = __str__
    @property
    def __traceback__(self): raise OSError
    def __getattr__(self, name): raise KeyError(name)
raise Weird
=== error_of_odd_type
raise type('\ud800\n' * 50, (Exception,), {})('\ud800')
=== error_in_a_circle
a, b = ValueError('a'), ValueError('b')
a.__cause__, b.__cause__ = b, a
raise a
=== error_chain
e = None
for i in range(3000):
    n = ValueError(i); n.__cause__ = e; e = n
raise e
=== error_with_odd_lines
e = SyntaxError('odd')
e.lineno, e.filename, e.text, e.offset = 'x', 5, 7, 'y'
raise e
=== error_with_a_worded_line
e = SyntaxError('odd')
e.lineno = 'x'
raise e
=== error_far_below
raise SyntaxError('far', ('f', 10**9, -5, 'text'))
=== error_many_lines
raise ValueError('\n' * 100_000 + 'end')
=== raises_interrupt
raise KeyboardInterrupt
=== raises_generator_exit
raise GeneratorExit('x')
=== raises_base
class B(BaseException): pass
raise B('x')
=== recursion
def f(): return f() + 1
f()
=== recursion_unlimited
import sys
sys.setrecursionlimit(10**9)
class R:
    def __repr__(self): return repr(self)
repr(R())
=== redefines_builtins
import builtins
for n in 'print len open isinstance str getattr int'.split():
    setattr(builtins, n, None)
---
x = 1
=== clears_modules
import sys
sys.modules.clear()
---
x = 1
=== replaces_the_shell
s = get_ipython()
s.run_cell = s.run_cell_async = s.events = None
---
x = 1
=== audits
import sys
def hook(*a): raise RuntimeError('no')
sys.addaudithook(hook)
---
x = 1
=== traces
import sys, threading
def t(*a): raise RuntimeError('no')
threading.settrace(t); sys.settrace(t)
---
x = 1
=== asks
input('name? ')
=== breaks
breakpoint()
x = 1
=== no_memory
x = bytearray(10**17)
=== leaks
x = []
while True: x.append(bytearray(b'x' * 10_000_000))
=== few_files
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
---
open('/dev/null')
=== cpu_limit
import resource
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
while True: pass
=== no_disk
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
---
print('x')
1/0
=== umask
import os
os.umask(0o777)
---
1
=== leaves_files
for i in range(30): open(f'../stray{i}', 'w').close()
=== tagged_but_dies raises-exception
import os
os._exit(0)
=== speaks_like_the_runner
print('passed  everything\nFAILED  nothing\n0 failed')
raise ValueError('x\nFAILED  y')
=== many_outputs
from IPython.display import display, clear_output
for i in range(2000):
    display(i); clear_output(wait=i % 2 == 0)
"""
HANGING = set("""
    stops_itself stops_its_parent hangs ignores_interrupts blocks_signals hangs_at_exit stdout_none stdout_number
    closes_all_files forks_and_stays removes_the_connection stops_the_loop shuts_down clears_modules
    redefines_builtins replaces_the_shell audits few_files no_disk recursion_unlimited
""".split())
QUICK = set("""
    exits kills_itself stops_itself ignores_interrupts hangs_at_exit closes_stdout stdout_number writes_bytes floods
    many_children thread_that_prints deletes_itself becomes_a_link folder_vanishes forges_the_records
    forges_the_error forges_messages weird_error error_with_odd_lines error_chain redefines_builtins asks leaks
    tagged_but_dies speaks_like_the_runner
""".split())


def kernels() -> dict[str, tuple[list[str], list[str]]]:
    "The cells of each notebook in `KERNELS`, and the tags of its first cell."
    parts = [part.partition("\n") for part in re.split(r"^=== ", KERNELS, flags=re.M)[1:]]
    return {head.split()[0]: (code.rstrip("\n").replace("{PRINTED}", str(PRINTED)).split("\n---\n"), head.split()[1:])
            for head, _, code in parts}


def misbehaved() -> dict[str, Case]:
    "Their first cells are marked for export: the exporter must take such code without running it."
    def maker(sources: list[str], tags: list[str]) -> Callable:
        def make(path: Path) -> None:
            first, *rest = (s.replace("{name}", path.name) for s in sources)
            path.write_text(text(book(cell(f"#export\n{first}", metadata={"tags": tags}), *rest)), encoding="utf-8")
        return make
    unix = re.compile(r"fork|signal|resource|abort|umask|symlink|closerange|echo|chdir")
    return {key: Case(maker(sources, tags), quick=key in QUICK, hangs=key in HANGING,
                      posix=bool(unix.search(str(sources))))
            for key, (sources, tags) in kernels().items()}


GROUPS = {f.__name__: f for f in (damaged, misshapen, marked, named, linked, large, misbehaved)}


def corpus() -> dict[str, Case]:
    "All cases by key, without those that cannot be made on this system."
    cases = {key: case for group in GROUPS.values() for key, case in group().items()}
    return {key: case for key, case in cases.items() if (POSIX or not case.posix) and (LINUX or not case.linux)}


def write(folder: Path, cases: dict[str, Case]) -> dict[str, Path]:
    "Makes the notebooks of `cases` in `folder`, each with a chapter number of its own; their paths."
    paths = {}
    for n, (key, case) in enumerate(cases.items(), 100):
        paths[key] = folder / case.name.format(n=n, key=key)
        case.make(paths[key])
    return paths


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    print(f"{len(write(place, corpus()))} notebooks in {place}")
