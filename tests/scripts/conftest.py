"""Fixtures for the tests of the scripts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import spacy.cli
from spacy.cli._util import app
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)

start_process = subprocess.run


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the scripts' `python -m spacy ...` in this process: a new one takes seconds to start."""
    assert spacy.cli.app is app

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if list(command[:3]) != [sys.executable, "-m", "spacy"]:
            return start_process(command, **options)
        result = CliRunner().invoke(app, command[3:], prog_name="python -m spacy")
        if not isinstance(result.exception, (SystemExit, type(None))):
            raise result.exception
        print(result.output)
        done = subprocess.CompletedProcess(command, result.exit_code, result.output)
        if options.get("check"):
            done.check_returncode()
        return done

    monkeypatch.setattr(subprocess, "run", run)
