"""spaCy's own commands and loops, with several pipes listening to one encoder."""

from __future__ import annotations

import json
import os
import re
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import spacy
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from spacy.tokens import DocBin
from thinc.api import Config

from spacy_distil.errors import ConfigError
from tests.commands import run_process, spacy_command
from tests.test_light_import import BLOCK, run_python
from tests.util import SENTENCES, WIDTH, adam, encoder_of, make_examples, make_nlp

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "train.cfg"
PIPES = ("tagger", "morphologizer", "ner", "textcat")


def test_a_pipeline_learns_16_docs(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, PIPES)
    examples = make_examples(nlp)
    optimizer = adam(5e-3)
    first = nlp.update(examples, sgd=optimizer)
    for _ in range(30):
        losses = nlp.update(examples, sgd=optimizer)
    for name in PIPES:
        assert losses[name] < 0.2 * first[name], name
    scores = nlp.evaluate(make_examples(nlp))
    for score in ("tag_acc", "pos_acc", "morph_acc", "ents_f", "cats_macro_f"):
        assert scores[score] > 0.95, score


# The commands


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write two files of docs for spaCy's commands."""
    nlp = spacy.blank("en")
    paths = {}
    for split, start in (("train", 0), ("dev", 100)):
        examples = make_examples(nlp, 24, start=start)
        paths[split] = tmp_path_factory.mktemp("corpus") / f"{split}.spacy"
        DocBin(docs=[each.reference for each in examples], store_user_data=True).to_disk(
            paths[split]
        )
    return paths


@pytest.fixture(scope="module")
def trained(
    corpus: dict[str, Path], bert_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Run `spacy train` with the project's config."""
    output = tmp_path_factory.mktemp("training")
    out = spacy_command(
        "train", CONFIG, "--output", output,
        "--paths.train", corpus["train"], "--paths.dev", corpus["dev"],
        "--paths.encoder", bert_dir, "--components.transformer.model.window", "64",
        "--training.max_steps", "4",
        "--training.eval_frequency", "2", "--training.batcher.size", "60",
    )  # fmt: skip
    assert "Saved pipeline to output directory" in out
    return output / "model-last"


def test_the_trained_pipeline_is_loaded(trained: Path) -> None:
    nlp = spacy.load(trained)
    assert nlp.pipe_names == ["transformer", "morphologizer", "tagger", "ner", "textcat"]
    assert {path.name for path in (trained / "transformer").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "SHA256SUMS",
    }
    doc = nlp("Ann visited Rome in spring.")
    assert doc.tensor.shape == (len(doc), WIDTH)
    assert all(token.tag_ for token in doc)
    assert doc.cats.keys() == {"travel", "food"}
    texts = [*SENTENCES, "", "  "] * 4
    for piped, text in zip(nlp.pipe(texts, batch_size=5), texts, strict=True):
        alone = nlp(text)
        np.testing.assert_allclose(piped.tensor, alone.tensor, rtol=0, atol=1e-5)
        assert [token.tag_ for token in piped] == [token.tag_ for token in alone]


def test_training_moved_the_encoder(trained: Path, bert_dir: Path) -> None:
    from safetensors.numpy import load_file

    before = load_file(bert_dir / "model.safetensors")
    after = load_file(trained / "transformer" / "model.safetensors")
    moved = max(float(np.abs(after[name] - before[name]).max()) for name in after)
    assert 1e-6 < moved < 1e-2


def test_evaluate(trained: Path, corpus: dict[str, Path], tmp_path: Path) -> None:
    spacy_command("evaluate", trained, corpus["dev"], "--output", tmp_path / "metrics.json")
    scores = json.loads((tmp_path / "metrics.json").read_text())
    for score in ("tag_acc", "pos_acc", "ents_f", "cats_score"):
        assert 0 <= scores[score] <= 1
    assert scores["speed"] > 0


def build_wheel(pipeline: Path, output: Path) -> tuple[list[Requirement], list[str]]:
    """Package a pipeline. RETURNS: the requirements of the wheel, and the names of its files."""
    run_process(
        "-m", "spacy", "package", pipeline, output,
        "--name", "tiny", "--version", "1.2.3", "--build", "wheel",
    )  # fmt: skip
    wheel = output / "en_tiny-1.2.3" / "dist" / "en_tiny-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read("en_tiny-1.2.3.dist-info/METADATA").decode().splitlines()
        names = archive.namelist()
    required = [Requirement(line.partition(":")[2]) for line in metadata if "Requires-Dist" in line]
    return required, names


@pytest.mark.slow
def test_package(trained: Path, tmp_path: Path) -> None:
    required, names = build_wheel(trained, tmp_path)
    (ours,) = (each for each in required if each.name == "spacy-distil")
    assert ours.specifier == SpecifierSet(">=0.1.0,<0.2.0")
    assert ours.extras == {"train"}  # its engine needs torch
    assert "en_tiny/en_tiny-1.2.3/transformer/model.safetensors" in names


@pytest.mark.slow
def test_package_of_an_onnx_pipeline(onnx_pipeline: Path, tmp_path: Path) -> None:
    """The base install runs it."""
    required, names = build_wheel(onnx_pipeline, tmp_path)
    (ours,) = (each for each in required if each.name == "spacy-distil")
    assert ours.specifier == SpecifierSet(">=0.1.0,<0.2.0")
    assert not ours.extras
    assert not {each.name for each in required} & {"torch", "transformers", "onnx"}
    folder = "en_tiny/en_tiny-1.2.3/transformer"
    assert {name.rpartition("/")[2] for name in names if name.startswith(f"{folder}/")} == {
        "SHA256SUMS",
        "config.json",
        "model.onnx",
        "tokenizer.json",
    }


def test_fill_config_and_debug_config(
    corpus: dict[str, Path], bert_dir: Path, tmp_path: Path
) -> None:
    paths = {"encoder": bert_dir, **corpus}
    text = CONFIG.read_text()
    for name, path in paths.items():
        text = text.replace(f"\n{name} = null", f'\n{name} = "{path}"')
    (tmp_path / "base.cfg").write_text(text)
    filled = tmp_path / "filled.cfg"
    spacy_command("init", "fill-config", tmp_path / "base.cfg", filled)
    assert "Config is valid" in spacy_command("debug", "config", filled)


# Processes and threads

TWO_THREADS = {"components": {"transformer": {"model": {"threads": 2}}}}
# Wait until the threads of a session sleep, so that a child process would have to wake them.
WAIT_FOR_SLEEP = """
import threading, time
from contextlib import suppress
from pathlib import Path

def states():
    for task in Path("/proc/self/task").glob("*"):
        if int(task.name) != threading.get_native_id():
            with suppress(OSError):  # the thread has ended
                yield (task / "stat").read_text().rpartition(")")[2].split()[0]

while {*states()} - {"S"}:
    time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["", "true"])
def test_pipe_in_two_processes_after_a_forward_with_threads(
    trained: Path, parallelism: str
) -> None:
    """A child process that waits for threads of its parent would hang."""
    out = run_process(
        "-c",
        textwrap.dedent(
            f"""
            import numpy as np
            import spacy
            import torch

            torch.set_num_threads(2)
            nlp = spacy.load({str(trained)!r})
            texts = ["Ann visited Rome. " * 20, "", "We like pizza."] * 20
            # Large enough for torch to share the work among its threads.
            torch.nn.Linear(512, 512)(torch.ones(2048, 512))
            alone = [doc.tensor for doc in nlp.pipe(texts)]
            together = [doc.tensor for doc in nlp.pipe(texts, n_process=2, batch_size=10)]
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
            print("same", len(together))
            """
        ),
        timeout=120,
        TOKENIZERS_PARALLELISM=parallelism,
    )
    assert "same 60" in out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_onnx_pipeline_in_two_processes_after_a_prediction(
    onnx_pipeline: Path, tmp_path: Path, method: str
) -> None:
    """A child process that waits for threads of its parent, even to delete them, would hang."""
    code = f"""
    import multiprocessing

    import numpy as np
    import spacy

    if __name__ == "__main__":
        multiprocessing.set_start_method({method!r})
        nlp = spacy.load({str(onnx_pipeline)!r}, config={TWO_THREADS!r})
        texts = ["Ann visited Rome. " * 20, "", "We like pizza."] * 20
        alone = [doc.tensor for doc in nlp.pipe(texts)]
        exec({WAIT_FOR_SLEEP!r})
        together = [doc.tensor for doc in nlp.pipe(texts, n_process=2, batch_size=10)]
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a, b)
        print("same", len(together))
    """
    script = tmp_path / "pipe.py"  # a process that is spawned reads it again
    script.write_text(BLOCK + textwrap.dedent(code))
    assert "same 60" in run_process(script, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_ends_with_its_copy_of_a_session(onnx_pipeline: Path) -> None:
    """It may predict, drop the pipeline, or do nothing."""
    out = run_python(
        f"""
        import os, time
        import spacy

        nlp = spacy.load({str(onnx_pipeline)!r}, config={TWO_THREADS!r})
        texts = ["Ann visited Rome. " * 20] * 20
        for _ in nlp.pipe(texts):
            pass
        exec({WAIT_FOR_SLEEP!r})
        for case in ("predicts", "forgets", "ends"):
            child = os.fork()
            if child == 0:
                if case == "predicts":
                    nlp(texts[0])
                elif case == "forgets":
                    nlp.remove_pipe("transformer")
                sys.exit(3)
            for _ in range(600):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    break
                time.sleep(0.05)
            else:
                os.kill(child, 9)
                sys.exit(f"the child that {{case}} hangs")
            assert os.waitstatus_to_exitcode(status) == 3, case
        print("all ended")
        """,
        block=True,
    )
    assert "all ended" in out


def test_threads_share_an_onnx_pipeline(onnx_pipeline: Path) -> None:
    nlp = spacy.load(onnx_pipeline)
    texts = [each.text for each in make_examples(nlp, 12, start=300)]
    expected = [nlp(text) for text in texts]

    def work(i: int) -> bool:
        docs = [nlp(texts[i % 12])] if i % 2 else list(nlp.pipe(texts))
        same = [expected[i % 12]] if i % 2 else expected
        return all(
            np.array_equal(doc.tensor, other.tensor)
            and [token.tag_ for token in doc] == [token.tag_ for token in other]
            and doc.cats == other.cats
            for doc, other in zip(docs, same, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60)))


# Training the heads of a frozen encoder


def test_an_onnx_encoder_is_not_trained(onnx_pipeline: Path) -> None:
    nlp = spacy.load(onnx_pipeline)
    message = (
        "This encoder cannot be trained: engine = 'onnx' only predicts. Train the original "
        "pipeline and run 'spacy distil quantize' again, or train only the other pipes: add the "
        "encoder to [training] frozen_components and annotating_components, or set frozen = true "
        "in its model."
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        nlp.update(make_examples(nlp), sgd=adam())


@pytest.mark.parametrize("way", ["frozen_components", "frozen = true"])
def test_heads_are_trained_on_an_onnx_encoder(onnx_pipeline: Path, way: str) -> None:
    settings = {"frozen": way == "frozen = true"}
    nlp = spacy.load(onnx_pipeline, config={"components": {"transformer": {"model": settings}}})
    files = encoder_of(nlp).to_files()
    examples = make_examples(nlp)
    for example in examples:  # the opposite of what it knows
        example.reference.cats = {k: 1.0 - v for k, v in example.reference.cats.items()}
    optimizer = adam(5e-3)
    frozen = [] if settings["frozen"] else ["transformer"]
    losses = [
        nlp.update(examples, sgd=optimizer, exclude=frozen, annotates=frozen)["textcat"]
        for _ in range(40)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert encoder_of(nlp).to_files() == files


def test_spacy_train_on_an_onnx_encoder(
    onnx_pipeline: Path, corpus: dict[str, Path], tmp_path: Path
) -> None:
    """The encoder is sourced, frozen and annotating, as the error message says."""
    text = CONFIG.read_text()
    nlp = spacy.load(onnx_pipeline)
    config = Config().from_str(text, interpolate=False)
    config["nlp"]["pipeline"] = ["transformer", "tagger"]
    source = {"source": str(onnx_pipeline)}
    config["components"] = {"transformer": source, "tagger": config["components"]["tagger"]}
    config["training"]["frozen_components"] = ["transformer"]
    config["training"]["annotating_components"] = ["transformer"]
    config.to_disk(tmp_path / "train.cfg")
    spacy_command(
        "train", tmp_path / "train.cfg", "--output", tmp_path / "out",
        "--paths.train", corpus["train"], "--paths.dev", corpus["dev"],
        "--training.max_steps", "4", "--training.eval_frequency", "2",
    )  # fmt: skip
    trained = spacy.load(tmp_path / "out" / "model-last")
    assert encoder_of(trained).to_files() == encoder_of(nlp).to_files()
    assert all(token.tag_ for token in trained("Ann visited Rome ."))
