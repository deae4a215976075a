"""The output directory of a long run, and the earlier run that it may hold.

Beside its results, a run keeps its settings and fingerprints of its inputs. They tell whether a
later call is the same run, which can be resumed, or a new one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confection import Config
from wasabi import Printer, msg

from spacy_distil.errors import ConfigError, WriteError
from spacy_distil.runs.files import (
    STALE_AFTER,
    UNFINISHED,
    explain_write_errors,
    remove_unfinished,
    write_text,
)
from spacy_distil.runs.outputs import check_writable
from spacy_distil.runs.settings import changed_settings

# The files that mark a run: its settings, and its results, written when it begins and again when it
# has finished.
SETTINGS, RESULTS = "distil.cfg", "distil.json"
# A new run moves the files that it replaces aside, under this prefix, until it begins.
ASIDE = ".earlier-"


@dataclass(frozen=True)
class RunDirectory:
    """A directory that runs of one kind write to.

    path: the directory, which need not exist.
    kind: the command of the runs, such as "encoder" for `spacy distil encoder`.
    own: names of the files and directories that the run alone writes, beside settings and results.
    kept: names of files that stay when another run replaces this one.
    early: names of files and directories that a run writes before it begins.
    free: settings that a resumed run may change, since they do not change its result.
    finished: entries that the results of a finished run have.
    model: name of a file without which a result in the directory itself cannot be loaded, if any.
    """

    path: Path
    kind: str
    own: frozenset[str]
    kept: frozenset[str]
    free: frozenset[str]
    finished: frozenset[str] = frozenset()
    early: frozenset[str] = frozenset()
    model: str = ""

    def has_run(self) -> bool:
        """Whether a run has begun here. A run begins after its inputs have been checked.

        Raises `ConfigError` if the directory holds anything but a run, which must not be touched.
        """
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise ConfigError(
                f"output {self.path} is a file; it must be a directory, or not exist yet"
            )
        names = {p.name for p in self.path.iterdir() if not p.name.startswith(UNFINISHED)}
        if names and SETTINGS not in names:
            raise ConfigError(
                f"output directory {self.path} holds files, but no distillation run "
                f"({', '.join(sorted(names)[:5])}). Give an empty or a new directory"
            )
        if RESULTS not in names:
            return False
        kind = self.read_results().get("kind")
        if kind != self.kind:
            raise ConfigError(
                f"output directory {self.path} holds a run of `spacy distil {kind}`, which "
                f"`spacy distil {self.kind}` does not replace. Give another directory"
            )
        return True

    def check(self, *, resume: bool, force: bool) -> None:
        """Look, before any work begins, whether a run may write here.

        Raises `ConfigError` if the directory holds a run that is neither resumed nor replaced, and
        `WriteError` if nothing can be written.
        """
        if self.has_run() and not (resume or force):
            raise ConfigError(
                f"output directory {self.path} is not empty. Go on with the run in it with "
                f"--resume, replace it with --force, or give another directory"
            )
        if not (resume and self.read_results().get("finished")):
            check_writable(self.path)

    @contextmanager
    def explain_write_errors(self, newest_step: Callable[[], int | None]) -> Iterator[None]:
        """Tell after a `WriteError` of a run which checkpoint is kept, and how to go on.

        newest_step: returns the step of the newest checkpoint, if there is one.
        """
        try:
            with explain_write_errors(self.path):
                yield
        except WriteError as error:
            step = newest_step()
            kept, go_on = "There is no checkpoint yet", "start again"
            if step is not None:
                kept, go_on = f"The checkpoint of step {step} is kept", "go on with --resume"
            raise error.with_advice(kept, go_on) from error.__cause__

    def find_earlier(
        self, settings: Config, inputs: Mapping[str, str], *, resume: bool, force: bool
    ) -> dict[str, Any] | None:
        """Find the run to resume. This changes nothing.

        settings, inputs: of the run that is about to start. Inputs are fingerprints by name.
        RETURNS: the results so far of the run to resume; `None` if a new run starts.
        Raises `ConfigError` if the directory holds another run and `force` does not replace it.
        """
        if not self.has_run():
            return None
        changed = self._changes(settings, inputs)
        if resume and not changed:
            return self.read_results()
        if not force:
            raise ConfigError(
                f"the run in {self.path} cannot be resumed, because these have changed: "
                f"{', '.join(changed)}. Put them back, give another directory, or replace the run "
                f"with --force"
            )
        msg.info(f"Replacing the run in {self.path}")
        return None

    def prepare(self, settings: Config, earlier: Mapping[str, Any] | None) -> None:
        """Make room for what a run writes while its inputs are checked: `kept` and `early`.

        A run that will be replaced stays until `begin`. If an error or a kill comes before, all of
        it is there: `restoring` or the next call of this puts back what was set aside.

        earlier: see `find_earlier`.
        """
        remove_unfinished(self.path, older_than=STALE_AFTER)
        for name in self.own | {SETTINGS, RESULTS}:
            remove_unfinished(self.path, name=name)
        if not self.has_run():
            self._clear()  # a process may have been killed while it removed a run
            self._write_settings(settings)
            return
        self._put_back()
        if earlier is None:
            for name in self.early:
                if (self.path / name).exists():
                    (self.path / name).rename(self.path / f"{ASIDE}{name}")

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Put back what `prepare` has set aside, if an error ends the block before `begin`."""
        try:
            yield
        except BaseException:
            self._put_back()
            raise

    def begin(
        self, settings: Config, results: Mapping[str, Any], earlier: Mapping[str, Any] | None
    ) -> None:
        """Declare that a run has begun, after its inputs have been checked.

        If it is a new one, it replaces the run before.

        results: see `write_results`. earlier: see `find_earlier`.
        """
        if earlier is None:
            self._clear()
        self._write_settings(settings)
        self.write_results({**results, "finished": False})

    def announce(
        self,
        earlier: Mapping[str, Any] | None,
        *,
        resume: bool,
        has_checkpoint: bool,
        printer: Printer = msg,
    ) -> bool:
        """Tell the user how the run begins.

        earlier: see `find_earlier`. resume: whether the user asked for it.
        RETURNS: whether the run is finished already.
        """
        if earlier and earlier.get("finished"):
            printer.good(f"Finished already: {self.path}")
            return True
        if earlier is not None and has_checkpoint:
            printer.info(f"Resuming the run in {self.path}")
        elif resume:
            printer.info(f"Nothing to resume in {self.path}: starting")
        return False

    def _write_settings(self, settings: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / SETTINGS, settings.to_str())

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write the results. results: JSON, with "inputs" and whether the run has "finished"."""
        write_text(self.path / RESULTS, json.dumps({"kind": self.kind, **results}, indent=2) + "\n")

    def read_results(self) -> dict[str, Any]:
        """Read the results; empty if there are none. Raises `ConfigError` if they are damaged."""
        path = self.path / RESULTS
        if not path.exists():
            return {}
        try:
            results = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise self._damaged(RESULTS, error) from error
        if not isinstance(results, dict):
            raise self._damaged(RESULTS, "it is no JSON object")
        kinds = {"kind": str, "inputs": dict, "finished": bool}
        wrong = {k for k, kind in kinds.items() if not isinstance(results.get(k, kind()), kind)}
        missing = {"kind", *(self.finished if results.get("finished") else ())} - results.keys()
        for names, problem in ((wrong, "has a wrong"), (missing, "has no")):
            if names:
                raise self._damaged(RESULTS, f"it {problem} {sorted(names)[0]!r}")
        return results

    def _damaged(self, name: str, reason: object) -> ConfigError:
        return ConfigError(
            f"{self.path / name} is damaged ({' '.join(str(reason).split())}). Its run cannot go "
            f"on: give another directory, or delete {self.path} and begin again"
        )

    def _changes(self, settings: Config, inputs: Mapping[str, str]) -> list[str]:
        """Name the settings that have changed, and the inputs with other contents."""
        # Written and read, as the settings before were, so that numbers compare equal.
        now = Config().from_str(settings.to_str(), interpolate=False)
        try:
            before = Config().from_disk(self.path / SETTINGS, interpolate=False)
        except Exception as error:  # configparser, confection and the encoding raise their own
            raise self._damaged(SETTINGS, error) from error
        changed = changed_settings(before, now, self.free)
        # An input that is not recorded has not been used yet.
        recorded = {**inputs, **self.read_results().get("inputs", {})}
        return changed + [f"contents of {k}" for k in inputs if recorded[k] != inputs[k]]

    def _clear(self) -> None:
        """Remove the run. If this is killed, the directory is still known to hold a run, and no
        part of its result can be loaded.
        """
        (self.path / RESULTS).unlink(missing_ok=True)
        paths = list(self.path.iterdir()) if self.path.exists() else []
        for path in sorted(paths, key=lambda path: path.name != self.model):
            if path.name in self.kept | self.early | {SETTINGS}:
                continue
            if path.is_dir():
                shutil.rmtree(path.rename(self.path / f".removed-{path.name}"))
            else:
                path.unlink()

    def _put_back(self) -> None:
        """Undo what `prepare` has set aside, unless the new run has begun."""
        if not (self.path / RESULTS).exists():
            return
        for aside in self.path.glob(f"{ASIDE}*"):
            place = self.path / aside.name.removeprefix(ASIDE)
            if place.exists():
                shutil.rmtree(place)
            aside.rename(place)
