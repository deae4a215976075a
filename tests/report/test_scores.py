from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
from spacy.language import Language
from spacy.pipeline import TextCategorizer
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Corpus, Example
from thinc.api import Linear, Model, PyTorchWrapper, chain
from thinc.shims import Shim

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.pipelines import check_pipeline, count_bytes
from spacy_distil.report.scores import (
    COLUMNS,
    count_documents,
    count_parameters,
    f_score,
    macro_f_score,
    precision,
    recall,
    score_pipeline,
)
from spacy_distil.report.worker import find_categories
from spacy_distil.text.documents import read_examples
from tests.report.stock_pipelines import Trained


@pytest.mark.parametrize(
    ("which", "keys"),
    [
        ("full", {"pos_acc", "tag_acc", "ents_p", "ents_r", "ents_f", "cats_macro_f"}),
        ("partial", {"ents_p", "ents_r", "ents_f", "cats_macro_f"}),
    ],
)
def test_scores_are_those_of_spacy_and_of_the_documents_counts(
    trained: Trained, which: str, keys: set[str]
) -> None:
    path = getattr(trained, which)
    scores = score_pipeline(str(path), trained.test)
    nlp = spacy.load(path)
    reference = nlp.evaluate(list(Corpus(trained.test)(nlp)))
    assert scores.values == {key: reference[key] for key in keys}
    assert all(0 < value < 1 for value in scores.values.values()), "too easy to tell apart"
    for column in COLUMNS:
        if column.key in keys:
            counts = scores.counts[column.counts]
            assert len(counts) == 40
            assert column.metric(counts.sum(axis=0)) == pytest.approx(reference[column.key])
    assert scores.n_docs == 40
    assert scores.n_words == sum(
        len(nlp.make_doc(doc.reference.text)) for doc in Corpus(trained.test)(nlp)
    )


def test_counts_by_hand() -> None:
    nlp = spacy.blank("en")
    textcat = nlp.add_pipe("textcat")
    assert isinstance(textcat, TextCategorizer)
    for label in ("A", "B", "C"):
        textcat.add_label(label)
    gold = Doc(
        nlp.vocab,
        words=["Ada", "can't", "go", "home", "Alan", "U", "S"],
        spaces=[True, True, True, True, True, False, False],
        pos=["PROPN", "AUX", "VERB", "NOUN", "", "PROPN", "PROPN"],
        tags=["NNP", "MD", "VB", "NN", "NNP", "", ""],
        ents=["B-PER", "O", "O", "O", "B-PER", "O", "O"],
    )
    gold.cats = {"A": 0.0, "B": 1.0, "C": 0.0, "unknown to the pipe": 1.0}
    predicted = Doc(
        nlp.vocab,
        words=["Ada", "ca", "n't", "go", "home", "Alan", "US"],
        spaces=[True, False, True, True, True, True, False],
        pos=["PROPN", "AUX", "PART", "NOUN", "NOUN", "PROPN", "PROPN"],
        tags=["NNP", "MD", "RB", "NN", "NN", "NN", "NNP"],
        ents=["B-PER", "O", "O", "B-LOC", "O", "O", "O"],
    )
    predicted.cats = {"A": 0.7, "B": 0.2, "C": 0.1}
    example = Example(predicted, gold)
    counts = count_documents([example], find_categories(nlp))
    # Both parts of "can't" are judged by its tag; "US" is two gold tokens, so it finds neither;
    # Alan has no UPOS tag to judge by.
    assert counts["pos"].tolist() == [[3, 2, 3]]
    assert counts["tag"].tolist() == [[3, 3, 2]]
    assert counts["ents"].tolist() == [[1, 1, 1]]
    assert counts["cats"].tolist() == [[[0, 1, 0], [0, 0, 1], [0, 0, 0]]]
    for attribute in ("pos", "tag"):
        reference = Scorer.score_token_attr([example], attribute)[f"{attribute}_acc"]
        assert f_score(counts[attribute].sum(axis=0)) == pytest.approx(reference)


def test_metrics_by_hand() -> None:
    totals = np.array([[6.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    assert precision(totals).tolist() == [0.75, 0.0]
    assert recall(totals).tolist() == [0.6, 0.0]
    assert f_score(totals).tolist() == pytest.approx([2 * 0.75 * 0.6 / 1.35, 0.0])
    assert macro_f_score(totals) == pytest.approx(0.75 * 0.6 / 1.35)


def test_what_the_gold_lacks_has_no_score(
    trained: Trained, write_docs: Callable[[list[Doc]], Path]
) -> None:
    docs = [
        Doc(spacy.blank("en").vocab, words=["Ada", "beat", "Alan"], pos=["PROPN", "VERB", "PROPN"])
    ]
    scores = score_pipeline(str(trained.full), write_docs(docs))
    assert set(scores.values) == {"pos_acc"}


def test_a_scorer_of_its_own_has_no_interval(trained: Trained, tmp_path: Path) -> None:
    nlp = spacy.load(trained.full)
    nlp.to_disk(tmp_path)
    config = nlp.config
    config["components"]["ner"]["scorer"] = {"@scorers": "distil_test.half_of_it.v1"}
    config.to_disk(tmp_path / "config.cfg")

    @spacy.registry.scorers("distil_test.half_of_it.v1")
    def make_scorer() -> Callable:
        return lambda examples, **kwargs: {"ents_p": 0.5, "ents_r": 0.5, "ents_f": 0.5}

    scores = score_pipeline(str(tmp_path), trained.test)
    assert scores.values["ents_f"] == 0.5
    assert set(scores.counts) == {"pos", "tag", "cats"}


def test_limit_takes_the_first_documents(trained: Trained) -> None:
    nlp = spacy.blank("en")
    texts = [example.reference.text for example in read_examples(nlp, trained.test)]
    limited = [example.reference.text for example in read_examples(nlp, trained.test, limit=7)]
    assert limited == texts[:7]


class CountingShim(Shim):
    n_parameters = 1000


def test_parameters_of_thinc_torch_and_shims() -> None:
    @Language.component("distil_test_counted")
    class Counted:
        def __init__(self, model: Model) -> None:
            self.model = model

        def __call__(self, doc: Doc) -> Doc:
            return doc

    nlp = spacy.blank("en")
    shared = Linear(nO=3, nI=4).initialize()
    torch_model = PyTorchWrapper(torch.nn.Linear(5, 2))
    with_shim: Model = Model("with_shim", lambda model, x, is_train: (x, lambda y: y))
    with_shim.shims.append(CountingShim(None))
    uninitialized = Linear()
    for i, model in enumerate(
        (chain(shared, torch_model), chain(shared, with_shim), uninitialized)
    ):
        nlp._components.append((f"counted_{i}", Counted(model)))
    assert count_parameters(nlp) == (3 * 4 + 3) + (5 * 2 + 2) + 1000


def test_bytes_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "sub" / "two").write_bytes(b"123")
    assert count_bytes(tmp_path) == 8


def test_unreadable_test_sets(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    with pytest.raises(CorpusError, match=r"No documents at .*nowhere\.spacy"):
        read_examples(nlp, tmp_path / "nowhere.spacy")
    other = tmp_path / "test.conllu"
    other.write_text("# text")
    with pytest.raises(CorpusError, match=r"expected a \.spacy file"):
        read_examples(nlp, other)
    broken = tmp_path / "broken.spacy"
    broken.write_bytes(b"no zlib")
    with pytest.raises(CorpusError, match=r"Cannot read .*broken\.spacy"):
        read_examples(nlp, broken)


def test_test_set_without_documents(
    tmp_path: Path, write_docs: Callable[[list[Doc]], Path]
) -> None:
    with pytest.raises(CorpusError, match="no documents with tokens"):
        read_examples(spacy.blank("en"), write_docs([]))


def test_what_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has no meta\.json"):
        check_pipeline(str(tmp_path))
    with pytest.raises(ConfigError, match="No pipeline 'en_nowhere'"):
        check_pipeline("en_nowhere")
