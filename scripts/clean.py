"""Remove what the project's commands have made.

python -m scripts.clean PATH [PATH ...]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg


def main(
    paths: Annotated[list[Path], typer.Argument(help="Files and directories of the project")],
) -> None:
    """Remove what the project's commands have made."""
    here = Path.cwd().resolve()
    for path in paths:
        if here not in path.resolve().parents:
            msg.fail(f"{path} is outside the project, and stays", exits=1)
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            continue
        msg.good(f"Removed {path}")


if __name__ == "__main__":
    typer.run(main)
