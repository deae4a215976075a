"""The base install runs pipelines, and costs nothing in processes that do not use it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "accelerate", "onnx")
# They need torch. spaCy would import their factories.
PLUGINS = ("spacy-transformers", "spacy-curated-transformers", *HEAVY)

# An interpreter without them.
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
    each for each in installed(**kwargs) if each.name not in {PLUGINS!r}
)
"""


def run_python(code: str, *, block: bool) -> str:
    """Run code in a new interpreter, and return its output."""
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
        import spacy
        import spacy_distil.cli.configs
        import spacy_distil.component.architectures, spacy_distil.component.interop
        import spacy_distil.component.listener, spacy_distil.component.pipe
        import spacy_distil.component.trf_data
        import spacy_distil.distillation.pipeline.corpus, spacy_distil.distillation.pipeline.run
        import spacy_distil.encoding, spacy_distil.engines, spacy_distil.fitting.family
        import spacy_distil.ner.pipe
        spacy.registry.readers.get("spacy-distil.Texts.v1")

        nlp = spacy.blank("en")
        nlp.add_pipe("distil_transformer", config={{"model": {{"name": {str(bert_dir)!r}}}}})
        listener = {{"@architectures": "spacy-distil.Listener.v1"}}
        model = {{"@architectures": "spacy.Tagger.v2", "tok2vec": listener}}
        nlp.add_pipe("tagger", config={{"model": model}}).add_label("X")
        nlp.add_pipe("distil_ner", config={{"model": model}}).add_label("X")
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
    assert pipes == "['distil_transformer', 'tagger', 'distil_ner']"
    assert error == (
        "An encoder that is not converted to ONNX needs 'torch' and 'transformers' and "
        "'accelerate', which are not installed. Install them with: "
        "pip install 'spacy-distil[train]'"
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


def test_an_onnx_pipeline_runs_without_torch(onnx_pipeline: Path) -> None:
    """And says what training it would need."""
    import spacy

    texts = ["Ann visited Rome in spring .", "", "  ", "We like unbelievable pizza in Oslo ."]
    out = run_python(
        f"""
        import spacy

        nlp = spacy.load({str(onnx_pipeline)!r})
        for doc in nlp.pipe({texts!r}):
            ents = [(ent.text, ent.label_) for ent in doc.ents]
            print([token.tag_ for token in doc], ents, max(doc.cats, key=doc.cats.get))
        print(sorted(set(sys.modules) & set({HEAVY!r})))

        from spacy.training import Example
        from spacy_distil.errors import ConfigError
        try:
            nlp.update([Example.from_dict(nlp.make_doc("a"), {{"tags": ["NN"]}})])
        except ConfigError as error:
            print(error)
        """,
        block=True,
    )
    *predicted, heavy, error = out.splitlines()
    nlp = spacy.load(onnx_pipeline)
    expected = [
        f"{[token.tag_ for token in doc]} {[(ent.text, ent.label_) for ent in doc.ents]} "
        f"{max(doc.cats, key=lambda label: doc.cats[label])}"
        for doc in nlp.pipe(texts)
    ]
    assert predicted == expected
    assert "'LOC'" in expected[0]
    assert heavy == "[]"
    assert "run 'spacy distil quantize' again" in error


def test_onnx_runtime_does_not_report_to_its_makers(onnx_pipeline: Path) -> None:
    """It would, in a thread of its own."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are not to be counted here")
    settings = {"components": {"transformer": {"model": {"threads": 1}}}}
    out = run_python(
        f"""
        import os
        import spacy

        os.environ.pop("ORT_DISABLE_TELEMETRY", None)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        before = len(os.listdir("/proc/self/task"))
        nlp = spacy.load({str(onnx_pipeline)!r}, config={settings!r})
        nlp("Ann visited Rome.")
        print("onnxruntime" in sys.modules, len(os.listdir("/proc/self/task")) - before)
        """,
        block=True,
    )
    assert out.split() == ["True", "0"]


def test_quantizing_names_the_extra(torch_pipeline: Path, tmp_path: Path) -> None:
    out = run_python(
        f"""
        from pathlib import Path
        from spacy_distil.errors import MissingExtraError
        from spacy_distil.export.quantize import quantize
        try:
            quantize({str(torch_pipeline)!r}, Path({str(tmp_path / "out")!r}))
        except MissingExtraError as error:
            print(error)
        """,
        block=True,
    )
    assert out.strip() == (
        "Making an ONNX graph needs 'onnx' and 'torch' and 'transformers' and 'accelerate', "
        "which are not installed. Install them with: pip install 'spacy-distil[export,train]'"
    )
    assert not (tmp_path / "out").exists()


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
    for command in ("benchmark", "compare", "convert", "encoder", "init-config", "quantize"):
        assert command in out


@pytest.mark.slow
def test_imports_add_nothing_heavy_to_those_of_spacy() -> None:
    """Where everything is installed. (thinc imports torch by itself.)"""
    slow = [
        "transformers", "accelerate", "matplotlib", "onnxruntime", "onnx",
        "tokenizers", "safetensors", "psutil", "tensorboard",
    ]  # fmt: skip
    out = run_python(
        f"""
        import spacy
        import spacy.cli
        before = set(sys.modules)
        assert "spacy_distil" not in before
        import spacy_distil.component.architectures, spacy_distil.component.listener
        import spacy_distil.component.pipe
        import spacy_distil.ner.pipe
        import spacy_distil.cli
        added = {{name.split(".")[0] for name in set(sys.modules) - before}}
        print(sorted(added & set({slow!r})))
        print("spacy_distil.engines.torch" in sys.modules)
        """,
        block=False,
    )
    assert out.splitlines() == ["[]", "False"]


def test_a_process_that_does_not_use_the_factory_pays_almost_nothing() -> None:
    """Registering factories and commands imports few modules, and no package that spaCy does not
    import by itself.
    """
    out = run_python(
        """
        import spacy.cli, spacy.pipeline, spacy.training
        before = set(sys.modules)
        assert "spacy_distil" not in before
        import spacy_distil.component.architectures, spacy_distil.component.listener
        import spacy_distil.component.pipe
        import spacy_distil.ner.pipe, spacy_distil.vectors.pipe
        import spacy_distil.pairs.pair_pipe, spacy_distil.pairs.qa_pipe
        factories = set(sys.modules) - before
        import spacy_distil.cli
        commands = set(sys.modules) - before - factories
        packages = {name.split(".")[0] for name in factories | commands}
        known = {name.split(".")[0] for name in before} | sys.stdlib_module_names
        rooms = {name.split(".")[1] for name in commands if name.startswith("spacy_distil.")}
        print(len(factories), len(commands), sorted(packages - known), sorted(rooms))
        """,
        block=True,
    )
    factories, commands, names = out.strip().split(maxsplit=2)
    assert int(factories) <= 61
    assert int(commands) <= 25
    assert names == "['spacy_distil'] ['cli', 'pipelines']"
