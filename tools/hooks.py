"""Make this checkout's git and Jupyter treat notebooks well: nbdev's merge and diff drivers, and cleaning on save.

`make` runs it once. nbdev writes its Jupyter hook into the home folder and trusts that its commands are on the PATH;
here the hook goes into the virtual environment, and git is told the commands' full paths, so that nothing outside
this checkout changes and the drivers work without an activated environment. Outside a git checkout it does nothing.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def git(*args: str) -> str:
    "Run git in the project; raises `CalledProcessError` when it fails."
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def install() -> None:
    "Run `nbdev-install-hooks` with a home of its own, then point its drivers at this environment."
    trust = ROOT / git("rev-parse", "--git-path", "hooks") / "post-merge"
    kept = trust.read_bytes() if trust.exists() else None  # nbdev would overwrite a hook of yours
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "HOME": home, "USERPROFILE": home}
        code = "from nbdev.clean import nbdev_install_hooks as f; f()"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, check=True)
        jupyter = Path(sys.prefix) / "etc" / "jupyter"
        jupyter.mkdir(parents=True, exist_ok=True)
        for file in (Path(home) / ".jupyter").glob("jupyter_*_config.py"):
            (jupyter / file.name).write_bytes(file.read_bytes())
    drivers = {"merge.jupyternotebook.driver": "nbdev-merge' %O %A %B %P",
               "diff.jupyternotebook.command": "nbdev-diff-driver'"}
    if kept is None:
        trust.write_text(f"#!/bin/sh\nexec '{(BIN / 'nbdev-trust').as_posix()}'\n", encoding="utf-8", newline="\n")
    else:
        trust.write_bytes(kept)
    for key, cmd in drivers.items():
        git("config", "--file", ".gitconfig", key, f"'{(BIN / cmd).as_posix()}")


if __name__ == "__main__":
    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            sys.exit()
    except (OSError, subprocess.CalledProcessError):
        sys.exit()
    install()
