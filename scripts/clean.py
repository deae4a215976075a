"""Remove the files that the project's commands wrote.

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
    """Remove the files that the project's commands wrote."""
    here = Path.cwd().resolve()
    for path in paths:
        if here not in path.resolve().parents:
            msg.fail(f"{path} is outside the project and is not removed", exits=1)
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            continue
        msg.good(f"Removed {path}")


if __name__ == "__main__":
    typer.run(main)
