"""Run the notebooks of docs/notebooks and write them as pages of the site, with what they print and draw.

    python benchmarks/notebook_pages.py [NAME ...]          # docs/notebooks/NAME.md and its pictures; default: all
    python benchmarks/notebook_pages.py --check [NAME ...]  # run them and write nothing

A notebook is a Python file in the percent format of Jupytext: Jupyter (with Jupytext), VS Code and PyCharm open it. A
cell of lines `# !COMMAND` is a shell's. Each notebook runs in an empty folder and a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
NAMES = sorted(file.stem for file in NOTEBOOKS.glob("*.py"))


def cells(text: str) -> list[tuple[str, str]]:
    """The kind (``markdown``, ``shell`` or ``python``) and the source of every cell."""
    found = []
    for head, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", text, re.M):
        source = body.strip("\n")
        if "[markdown]" in head:
            found.append(("markdown", re.sub(r"^# ?", "", source, flags=re.M)))
        elif all(line.startswith("# !") for line in source.splitlines()):
            found.append(("shell", re.sub(r"^# !", "", source, flags=re.M)))
        else:
            found.append(("python", source))
    return found


def run(name: str) -> tuple[list[str], list[bytes]]:
    """The page of a notebook and its pictures; executes it in the current folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    os.environ |= {"COLUMNS": "80", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    warnings.filterwarnings("ignore")
    space: dict[str, Any] = {"__name__": "__main__"}
    lines, pictures = list[str](), list[bytes]()
    for kind, source in cells((NOTEBOOKS / f"{name}.py").read_text()):
        if kind == "markdown":
            lines += [source, ""]
            continue
        lines += [f"```{'bash' if kind == 'shell' else kind}", source, "```", ""]
        if kind == "shell":
            done = subprocess.run(source, shell=True, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {source}\n{done.stderr}")
            said = done.stdout
        else:
            with contextlib.redirect_stdout(io.StringIO()) as told:
                exec(compile(source, f"{name}.py", "exec"), space)
            said = told.getvalue()
        if said.strip():
            lines += ["```text", said.strip("\n"), "```", ""]
        for number in plt.get_fignums():
            written, figure = io.BytesIO(), plt.figure(number)
            figure.savefig(written, dpi=100, bbox_inches="tight")
            title = figure.get_label() or "what the cell draws"
            pictures.append(written.getvalue())
            lines += [f"![{title}]({name}-{len(pictures)}.png)", ""]
        plt.close("all")
    lines += [f"Download [this notebook]({name}.py): Jupyter with Jupytext, VS Code and PyCharm open it as it is.", ""]
    return lines, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*NAMES, []], default=NAMES)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    for name in given.names or NAMES:
        if len(given.names) != 1:  # a process of its own
            words = [sys.executable, __file__, name, *(["--check"] if given.check else [])]
            subprocess.run(words, check=True)
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            lines, pictures = run(name)
        if not given.check:
            for old in NOTEBOOKS.glob(f"{name}-*.png"):
                old.unlink()
            for number, picture in enumerate(pictures, 1):
                (NOTEBOOKS / f"{name}-{number}.png").write_bytes(picture)
            (NOTEBOOKS / f"{name}.md").write_text("\n".join(lines))
        print(f"{name}: {len(pictures)} pictures")


if __name__ == "__main__":
    main()
