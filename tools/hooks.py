"""Make this checkout's git and Jupyter treat notebooks well: drivers that merge and compare them, cleaning on save.

`make` runs it once. The drivers are nbdev's, by their full paths, so that they work without an activated environment,
and ours for the generated modules. They are named in .gitconfig here and Jupyter's hook in the virtual environment:
`make clean` removes all of it. Outside a git checkout there is only Jupyter's hook.
"""
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def quoted(path: Path) -> str:
    "A path for the shell by which git calls a driver."
    return shlex.quote(path.as_posix())


DRIVERS = {                                                # .gitattributes says for which files
    "merge.jupyternotebook.name": "notebooks, by nbdev",
    "merge.jupyternotebook.driver": f"{quoted(BIN / 'nbdev-merge')} %O %A %B %P",
    "diff.jupyternotebook.command": quoted(BIN / "nbdev-diff-driver"),
    "merge.generated.name": "what notebook2script.py writes",
    "merge.generated.driver": f"{quoted(Path(sys.executable))} tools/merge_module.py %O %A %B %P",
}
JUPYTER = f'''# nbdev's own hook looks for the notebook below the working folder, where it is not, and fails.
import sys

sys.path.append({str(ROOT / "tools")!r})


def clean_on_save(model, contents_manager, **kwargs):
    if model["type"] == "notebook" and model["content"]["nbformat"] == 4:
        from runner.save import clean
        clean(model["content"], contents_manager.root_dir)


c.ContentsManager.pre_save_hook = clean_on_save
'''


def git(*args: str) -> str:
    "Run git in the project; raises `CalledProcessError` when it fails."
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()


def install() -> None:
    config = Path(sys.prefix, "etc", "jupyter", "jupyter_server_config.py")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(JUPYTER, encoding="utf-8")
    with suppress(OSError, subprocess.CalledProcessError):
        if Path(git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            for key, value in DRIVERS.items():
                git("config", "--file", ".gitconfig", key, value)
            git("config", "--local", "--replace-all", "include.path", "../.gitconfig", r"^\.\./\.gitconfig$")


if __name__ == "__main__":
    install()
