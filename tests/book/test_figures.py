"docs/reliability.md says what was counted, not what somebody remembers."
import re

import figures
import pytest


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,.]*\d|\d", text))


def test_the_table_has_the_figures_of_the_run():
    doc = figures.DOC.read_text(encoding="utf-8")
    run = numbers(figures.BLOCK.search(doc)[0])
    rows = [[c.strip() for c in row.strip("|").split("|")] for row in re.findall(r"^\| .*\|$", doc, re.M)]
    rows = [row for row in rows if len(row) == 3 and row[0] != "promised"]
    assert len(rows) >= 14
    for promise, _, counted in rows:
        given = counted.replace("2 tools", "").replace("of 0.4 allowed", "")
        assert numbers(given) <= run, (promise, numbers(given) - run)


def test_figures_are_kept_and_printed(tmp_path, monkeypatch, capsys):
    for name in ("FILE", "DOC"):
        monkeypatch.setattr(figures, name, tmp_path / "_out" / name)
    assert figures.main([]) == 1 and "run `make torture`" in capsys.readouterr().err
    monkeypatch.setattr(figures, "LONG", False)
    figures.figure("not kept in the quick form", n=1)
    monkeypatch.setattr(figures, "LONG", True)
    figures.figure("kills of a thing", kills=1200, files_lost=0)
    figures.DOC.write_text("before\n```text\nold\n```\nafter\n```text\n```\n", encoding="utf-8")
    assert figures.main(["--doc"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("\nkills of a thing: 1,200 kills, 0 files lost\n") and said.count("\n") == 2
    assert figures.DOC.read_text(encoding="utf-8") == f"before\n```text\n{said}```\nafter\n```text\n```\n"


@pytest.mark.parametrize("argv", [["--help"], ["x"], ["--doc", "--doc"]])
def test_other_arguments(argv, capsys):
    assert figures.main(argv) == 2 and "--doc" in capsys.readouterr().err
