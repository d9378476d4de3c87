"Spreadsheets as LibreOffice computes them."
import shutil
import subprocess
from pathlib import Path

import pytest

soffice = shutil.which("soffice") or shutil.which("libreoffice")
needs_soffice = pytest.mark.skipif(not soffice, reason="LibreOffice (soffice) is not installed")


def recompute(book: Path, work: Path):
    "`book` with the values LibreOffice computes, in `work` and with a profile of its own: parallel runs don't meet."
    from openpyxl import load_workbook
    work.mkdir(parents=True, exist_ok=True)
    cmd = [soffice, f"-env:UserInstallation={(work / 'profile').as_uri()}", "--headless", "--norestore",
           "--convert-to", "xlsx", "--outdir", str(work / "out"), str(book)]
    done = subprocess.run(cmd, capture_output=True, text=True, timeout=600)
    out = work / "out" / book.name
    assert out.is_file(), f"LibreOffice wrote nothing: {done.stdout}{done.stderr}"
    return load_workbook(out, data_only=True)
