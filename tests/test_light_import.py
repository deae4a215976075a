"""What must work where only the base install is there, and cost nothing where it is not used."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

HEAVY = ("torch", "transformers", "accelerate", "datasets", "onnx")

# An interpreter without them, and without spacy-transformers, whose factory spaCy would import.
BLOCK = f"""
import sys
from importlib import metadata

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
installed = metadata.distributions
metadata.distributions = lambda **kwargs: (
    each for each in installed(**kwargs) if each.name not in ("spacy-transformers", *{HEAVY!r})
)
"""


def run_python(code: str, *, block: bool) -> str:
    """What a new interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", (BLOCK if block else "import sys\n") + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_torch_and_transformers(bert_dir: Path) -> None:
    out = run_python(
        f"""
        import spacy_distil, spacy_distil.component, spacy_distil.architectures
        import spacy_distil.listener, spacy_distil.encoding, spacy_distil.engines
        import spacy, spacy_distil.cli

        nlp = spacy.blank("en")
        nlp.add_pipe("distil_transformer", config={{"model": {{"name": {str(bert_dir)!r}}}}})
        listener = {{"@architectures": "spacy-distil.Listener.v1"}}
        model = {{"@architectures": "spacy.Tagger.v2", "tok2vec": listener}}
        nlp.add_pipe("tagger", config={{"model": model}}).add_label("X")
        print(nlp.pipe_names)

        from spacy_distil.errors import MissingExtraError
        from spacy.training import Example
        example = Example.from_dict(nlp.make_doc("a"), {{"tags": ["X"]}})
        try:
            nlp.initialize(lambda: [example])
        except MissingExtraError as error:
            print(error)

        from spacy_distil.encoding import PieceTokenizer, encode_docs
        with open({str(bert_dir / "tokenizer.json")!r}, encoding="utf8") as file:
            tokenizer = PieceTokenizer.from_str(file.read())
        docs = [nlp.make_doc("Ann visited Rome.")]
        encoded = encode_docs(docs, tokenizer, window=64, overlap=8, pooling="mean")
        print(encoded.n_tokens, len(encoded.windows))
        print(sorted(set(sys.modules) & set({HEAVY!r})))
        """,
        block=True,
    )
    pipes, error, encoded, heavy = out.splitlines()
    assert pipes == "['distil_transformer', 'tagger']"
    assert error == (
        "An encoder that is not converted to ONNX needs 'torch', which is not installed. "
        "Install it with: pip install 'spacy-distil[train]'"
    )
    assert encoded == "[4] 1"
    assert heavy == "[]"


def test_a_saved_pipeline_names_the_extra(bert_dir: Path, tmp_path: Path) -> None:
    from tests.util import make_nlp

    make_nlp(bert_dir, ["tagger"]).to_disk(tmp_path)
    out = run_python(
        f"""
        import spacy
        from spacy_distil.errors import MissingExtraError
        try:
            spacy.load({str(tmp_path)!r})
        except MissingExtraError as error:
            print(error)
        """,
        block=True,
    )
    assert "pip install 'spacy-distil[train]'" in out


def test_help_without_torch_and_transformers() -> None:
    out = run_python(
        """
        import runpy
        sys.argv = ["spacy", "distil", "--help"]
        try:
            runpy.run_module("spacy", run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, stop.code
        """,
        block=True,
    )
    assert "Distil transformers into small, fast spaCy pipelines." in out
    for command in ("encoder", "init-config", "compare"):
        assert command in out


def test_imports_add_nothing_heavy_to_those_of_spacy() -> None:
    """Where everything is installed. (thinc imports torch by itself.)"""
    slow = [
        "transformers", "accelerate", "datasets", "matplotlib", "onnxruntime", "onnx",
        "tokenizers", "safetensors", "psutil", "tensorboard", "pandas",
    ]  # fmt: skip
    out = run_python(
        f"""
        import spacy
        import spacy.cli
        before = set(sys.modules)
        assert "spacy_distil" not in before
        import spacy_distil.component, spacy_distil.architectures, spacy_distil.listener
        import spacy_distil.cli
        added = {{name.split(".")[0] for name in set(sys.modules) - before}}
        print(sorted(added & set({slow!r})))
        print("spacy_distil.engines.torch" in sys.modules)
        """,
        block=False,
    )
    assert out.splitlines() == ["[]", "False"]


def test_a_process_that_does_not_use_the_factory_pays_almost_nothing() -> None:
    """Registering costs little beside importing spaCy itself."""
    out = run_python(
        """
        import time
        import spacy.cli, spacy.pipeline, spacy.training
        assert "spacy_distil" not in sys.modules
        start = time.perf_counter()
        import spacy_distil.component, spacy_distil.architectures, spacy_distil.listener
        print(time.perf_counter() - start)
        """,
        block=True,
    )
    assert float(out) < 0.5
