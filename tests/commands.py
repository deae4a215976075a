"""Run spaCy's commands in this process, and Python in another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from spacy.cli._util import app
from typer.testing import CliRunner


def spacy_command(*arguments: str | Path) -> str:
    """Run a command of spaCy in this process. RETURNS: its output."""
    result = CliRunner().invoke(
        app, [str(each) for each in arguments], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def run_process(*arguments: str | Path, timeout: float = 300, **variables: str) -> str:
    """Run Python with arguments in a new process. RETURNS: its output.

    timeout: in seconds. Then the process is killed, and those that it started.
    variables: of the environment.
    """
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", **variables},
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output
    return output
