"""An executed notebook as a page: made in a process of its own, as nbconvert is large."""
import json
import os
import subprocess
import sys

from runner.notebook import Notebook

PAGE = """
import sys, warnings
warnings.simplefilter("ignore")
import nbformat
from nbconvert import HTMLExporter
nb = nbformat.reads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"), as_version=4)
for c in nb.cells:
    c.metadata.pop("execution", None)
page, _ = HTMLExporter(template_name="lab", embed_images=True, require_js_url="", jquery_url="").from_notebook_node(
    nb, resources={"metadata": {"name": sys.argv[1], "path": "."}})
page = page.replace('<script src=""></script>', "")
sys.stdout.buffer.write(page.encode("utf-8", "replace"))
"""


def make_page(nb: Notebook) -> tuple[bytes, str]:
    "The page, or why there is none. Takes seconds: call it in a thread."
    doc = nb.with_outputs(counts=True)
    doc["metadata"] = {k: v for k, v in doc.get("metadata", {}).items() if k != "widgets"}
    done = subprocess.run([sys.executable, "-c", PAGE, nb.path.stem], cwd=nb.path.parent, capture_output=True,
                          env={**os.environ, "PYTHONWARNINGS": "ignore"},
                          input=json.dumps(doc).encode("utf-8", "surrogatepass"))
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return (done.stdout, "") if done.returncode == 0 else (b"", lines[-1] if lines else f"status {done.returncode}")
