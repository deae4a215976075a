from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Corpus, Example

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.export.agreement import Agreement, PipeMeasure, measure_agreement
from spacy_distil.export.agreement_table import to_markdown, to_text
from spacy_distil.report.layout import TIMES
from spacy_distil.text.documents import read_documents
from tests.report.stock_pipelines import Trained, train, train_all
from tests.util import make_nlp, torch_model_of

WORDS = ["Ann", "saw", "Bob", "in", "Rome", ".", "It", "rained", "in", "Oslo", "."]
TEXT = " ".join(WORDS)


# Pipelines whose annotations are written out


class Writer:
    """A pipe that writes what a function says, alone and in batches."""

    def __init__(self, write: Callable[[Doc, int], None]) -> None:
        self.write = write

    def __call__(self, doc: Doc) -> Doc:
        self.write(doc, 1)
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int) -> Iterator[Doc]:
        for batch in spacy.util.minibatch(stream, batch_size):
            for doc in batch:
                self.write(doc, len(batch))
                yield doc


def _make_factory(write: Callable[[Doc, int], None]) -> Callable[[Language, str], Writer]:
    # spaCy reads the annotations of a factory's arguments.
    return lambda nlp, name: Writer(write)


def pipeline(*pipes: tuple[str, list[str], Callable[[Doc, int], None]]) -> Language:
    """pipes: name, `assigns`, and what writes to a doc, told the size of the batch."""
    nlp = spacy.blank("en")
    for name, assigns, write in pipes:
        factory = f"{name}_{id(write)}"
        Language.factory(
            factory, assigns=assigns, func=lambda nlp, name, write=write: Writer(write)
        )
        nlp.add_pipe(factory, name=name)
    return nlp


def agree(left: Language, right: Language, **settings: Any) -> Agreement:
    settings = {"rounds": 0, "alone": False, **settings}
    return measure_agreement(left, right, [left.make_doc(TEXT)], **settings)


def shares(agreement: Agreement) -> dict[tuple[str, str], float]:
    return {(one.pipe, one.annotation): one.agreement for one in agreement.measures}


def set_each(attribute: str, values: list[Any]) -> Callable[[Doc, int], None]:
    def write(doc: Doc, batch_size: int) -> None:
        for token, value in zip(doc, values, strict=True):
            setattr(token, attribute, value)

    return write


@pytest.mark.parametrize(
    ("attribute", "assigns", "one", "other"),
    [
        ("tag_", "token.tag", "NN", "VB"),
        ("pos_", "token.pos", "NOUN", "VERB"),
        ("lemma_", "token.lemma", "a", "b"),
        ("ent_kb_id_", "token.ent_kb_id", "Q1", "Q2"),
    ],
)
def test_share_of_tokens(attribute: str, assigns: str, one: str, other: str) -> None:
    n = len(WORDS)
    left = pipeline(("p", [assigns], set_each(attribute, [one] * n)))
    right = pipeline(("p", [assigns], set_each(attribute, [one] * (n - 2) + [other] * 2)))
    agreement = agree(left, right)
    expected = PipeMeasure("p", assigns, "tokens", n, (n - 2) / n)
    assert agreement.measures == [expected]
    assert agreement.lowest == expected
    assert agreement.vectors is None
    # The same without a pipe that says so.
    left = pipeline(("q", [], set_each(attribute, [one] * n)))
    right = pipeline(("q", [], set_each(attribute, [one] * (n - 1) + [other])))
    assert agree(left, right).measures == [PipeMeasure("q", assigns, "tokens", n, (n - 1) / n)]


def test_morphology() -> None:
    def write(gender: str) -> Callable[[Doc, int], None]:
        def set_morph(doc: Doc, size: int) -> None:
            token: Any = doc[0]
            token.set_morph(f"Gender={gender}|Number=Sing")

        return set_morph

    left, right = (pipeline(("p", ["token.morph"], write(gender))) for gender in ("Fem", "Masc"))
    assert shares(agree(left, right)) == {("p", "token.morph"): 10 / 11}
    assert shares(agree(left, left)) == {("p", "token.morph"): 1}


def test_a_dependency_is_head_and_label() -> None:
    def write(heads: list[int], deps: list[str]) -> Callable[[Doc, int], None]:
        def set_tree(doc: Doc, size: int) -> None:
            tree = Doc(doc.vocab, WORDS, heads=heads, deps=deps)
            values: Any = tree.to_array(["HEAD", "DEP"])
            doc.from_array(["HEAD", "DEP"], values)

        return set_tree

    assigns = ["token.dep", "token.head", "token.is_sent_start", "doc.sents"]
    heads = [1, 1, 1, 1, 3, 1, 7, 7, 7, 8, 7]
    deps = ["nsubj", "ROOT", "obj", "prep", "pobj", "punct"]
    deps += ["expl", "ROOT", "prep", "pobj", "punct"]
    left = pipeline(("p", assigns, write(heads, deps)))
    # Another label, another head, and one root instead of two, each at a token of its own.
    right = pipeline(
        ("p", assigns, write([*heads[:3], 2, 3, 1, 7, 1, 7, 8, 7], ["obl", *deps[1:]]))
    )
    assert shares(agree(left, right)) == {
        ("p", "token.dep+head"): 8 / 11,
        ("p", "token.is_sent_start"): 10 / 11,
        # The sentences of the left are two, of the right one.
        ("p", "doc.sents"): 0.0,
    }


def test_sentences() -> None:
    def write(*starts: int) -> Callable[[Doc, int], None]:
        return set_each("is_sent_start", [i in starts for i in range(len(WORDS))])

    left = pipeline(("p", ["token.is_sent_start"], write(0, 6)))
    right = pipeline(("p", ["token.is_sent_start"], write(6, 9)))
    # 0-6, 6-11 and 0-6, 6-9, 9-11: the first token always starts one.
    assert shares(agree(left, right)) == {
        ("p", "token.is_sent_start"): 10 / 11,
        ("p", "doc.sents"): 2 * 1 / (2 + 3),
    }


def entities(*spans: tuple[int, int, str]) -> Callable[[Doc, int], None]:
    return lambda doc, size: doc.set_ents([Span(doc, *span) for span in spans])


def test_entities_by_token_and_as_a_set() -> None:
    assigns = ["doc.ents", "token.ent_iob", "token.ent_type"]
    left = pipeline(("p", assigns, entities((0, 1, "PER"), (2, 3, "PER"), (3, 5, "LOC"))))
    right = pipeline(("p", assigns, entities((0, 1, "PER"), (2, 3, "LOC"), (4, 5, "LOC"))))
    agreement = agree(left, right)
    # Tokens 2, 3 and 4; and one entity of three is found again.
    assert shares(agreement) == {
        ("p", "token.ent_iob+type"): pytest.approx(8 / 11),
        ("p", "doc.ents"): pytest.approx(1 / 3),
    }
    assert agreement.lowest is not None
    assert (agreement.lowest.annotation, agreement.lowest.n) == ("doc.ents", 6)
    # No entities in either: they agree, about nothing.
    none = pipeline(("p", assigns, entities()))
    assert shares(agree(none, none))["p", "doc.ents"] == 1
    assert shares(agree(none, left))["p", "doc.ents"] == 0


def test_groups_of_spans() -> None:
    def write(groups: dict[str, list[tuple[int, int, str]]]) -> Callable[[Doc, int], None]:
        def set_spans(doc: Doc, size: int) -> None:
            for key, spans in groups.items():
                doc.spans[key] = [Span(doc, *span) for span in spans]

        return set_spans

    left = pipeline(("p", ["doc.spans"], write({"a": [(0, 1, "X")], "b": [(0, 2, "X")]})))
    right = pipeline(("p", ["doc.spans"], write({"a": [(0, 1, "X"), (0, 2, "X")], "b": []})))
    # One of four: the group's name counts.
    assert shares(agree(left, right)) == {("p", "doc.spans"): 2 / 4}


def test_a_span_ruler_is_asked_about_its_own_group() -> None:
    pipelines = []
    for patterns in ([["Ann", "Rome"], ["Bob"]], [["Ann"], ["Bob", "Oslo"]]):
        nlp = spacy.blank("en")
        for key, words in zip(("one", "two"), patterns, strict=True):
            ruler: Any = nlp.add_pipe("span_ruler", name=key, config={"spans_key": key})
            ruler.add_patterns([{"label": "N", "pattern": word} for word in words])
        pipelines.append(nlp)
    assert shares(agree(*pipelines)) == {
        ("one", 'doc.spans["one"]'): pytest.approx(2 / 3),
        ("two", 'doc.spans["two"]'): pytest.approx(2 / 3),
    }


def test_categories_of_a_pipe_without_labels() -> None:
    def write(**cats: float) -> Callable[[Doc, int], None]:
        return lambda doc, size: doc.cats.update(cats)

    left = pipeline(("p", ["doc.cats"], write(a=0.6, b=0.4)))
    for cats, share, difference in (
        ({"a": 0.7, "b": 0.3}, 1.0, 0.1),
        ({"a": 0.1, "b": 0.2}, 0.0, 0.5),
        ({"b": 0.4}, 0.0, 0.6),
    ):
        (measure,) = agree(left, pipeline(("p", ["doc.cats"], write(**cats)))).measures
        assert (measure.annotation, measure.unit, measure.n) == ("doc.cats", "docs", 1)
        assert measure.agreement == share
        assert measure.max_difference == pytest.approx(difference)


def test_predictions_that_depend_on_the_batch() -> None:
    def write(doc: Doc, batch_size: int) -> None:
        for token in doc:
            token.tag_ = "A" if token.i or batch_size == 1 else f"B{batch_size}"

    steady = pipeline(("p", ["token.tag"], set_each("tag_", ["A"] * 11)))
    unsteady = pipeline(("p", ["token.tag"], write))
    documents = [steady.make_doc(TEXT) for _ in range(7)]
    agreement = measure_agreement(steady, unsteady, documents, batch_size=3, rounds=0, alone=True)
    # Batches of 3, 3 and 1: of 77 tokens six are other ones than alone.
    (measure,) = agreement.measures
    assert measure.agreement == pytest.approx(71 / 77)
    assert measure.candidate_alone == pytest.approx(71 / 77)
    assert measure.original_alone == 1
    agreement = measure_agreement(unsteady, steady, documents, batch_size=7, rounds=0, alone=True)
    assert agreement.measures[0].original_alone == pytest.approx(70 / 77)
    assert agreement.measures[0].candidate_alone == 1


# Real pipes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_all(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def pair(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two pipelines of the same pipes, with different weights."""
    directory = tmp_path_factory.mktemp("agreement")
    paths = []
    for source, seed, steps in ((trained.full, 0, 20), (trained.seed, 1, 15)):
        pipe = "textcat_multilabel"
        multilabel = train([pipe], directory / f"multilabel-{seed}", seed=seed, steps=steps)
        nlp: Any = spacy.load(source)
        nlp.add_pipe(pipe, source=spacy.load(multilabel))
        # A threshold of this pipe alone, with other decisions than 0.5.
        nlp.get_pipe(pipe).cfg["threshold"] = 0.3
        nlp.to_disk(directory / f"pipeline-{seed}")
        paths.append(directory / f"pipeline-{seed}")
    return paths[0], paths[1]


@pytest.fixture(scope="module")
def test_set(trained: Trained) -> Path:
    return trained.test


def test_stock_pipes_against_plain_loops(pair: tuple[Path, Path], test_set: Path) -> None:
    original, candidate = map(spacy.load, pair)
    documents = read_documents(test_set, original)
    agreement = measure_agreement(
        original, candidate, documents.docs, gold=documents.gold, batch_size=8, rounds=0
    )
    ours = [list(nlp.pipe(documents.texts)) for nlp in (original, candidate)]
    tokens = [(a, b) for docs in zip(*ours, strict=True) for a, b in zip(*docs, strict=True)]
    assert agreement.n_docs == 40
    assert agreement.n_words == len(tokens)
    found = {(one.pipe, one.annotation): one for one in agreement.measures}
    assert list(found) == [
        ("morphologizer", "token.pos"),
        ("morphologizer", "token.morph"),
        ("tagger", "token.tag"),
        ("ner", "token.ent_iob+type"),
        ("ner", "doc.ents"),
        ("textcat", "doc.cats"),
        ("textcat_multilabel", "doc.cats"),
    ]

    def share(get: Callable[[Any], Any]) -> float:
        return sum(get(a) == get(b) for a, b in tokens) / len(tokens)

    expected = {
        ("tagger", "token.tag"): share(lambda token: token.tag_),
        ("morphologizer", "token.pos"): share(lambda token: token.pos_),
        ("morphologizer", "token.morph"): share(lambda token: str(token.morph)),
        ("ner", "token.ent_iob+type"): share(lambda token: (token.ent_iob_, token.ent_type_)),
    }
    sets = [
        {(i, e.start_char, e.end_char, e.label_) for i, doc in enumerate(docs) for e in doc.ents}
        for docs in ours
    ]
    precision = len(sets[0] & sets[1]) / len(sets[1])
    recall = len(sets[0] & sets[1]) / len(sets[0])
    expected["ner", "doc.ents"] = 2 * precision * recall / (precision + recall)
    best = [[max(doc.cats, key=lambda c: doc.cats[c]) for doc in docs] for docs in ours]
    above = [[{c for c in doc.cats if doc.cats[c] >= 0.3} for doc in docs] for docs in ours]
    expected["textcat", "doc.cats"] = np.mean([a == b for a, b in zip(*best, strict=True)])
    expected["textcat_multilabel", "doc.cats"] = np.mean(
        [a == b for a, b in zip(*above, strict=True)]
    )
    for key, value in expected.items():
        assert found[key].agreement == pytest.approx(value), key
    assert min(expected.values()) < 0.95, "too easy to tell apart"
    differences = [abs(a.cats[c] - b.cats[c]) for a, b in zip(*ours, strict=True) for c in a.cats]
    assert found["textcat", "doc.cats"].max_difference == pytest.approx(max(differences))
    assert any("n't" in text for text in documents.texts), "norms of the tokenizer matter"
    # These pipes do not depend on the batch.
    assert {one.candidate_alone for one in agreement.measures} == {1.0}
    assert {one.original_alone for one in agreement.measures} == {1.0}

    # spaCy's own evaluation, each pipeline reading the file by itself.
    for nlp, scores in (
        (original, agreement.original_scores),
        (candidate, agreement.candidate_scores),
    ):
        reference = nlp.evaluate(list(Corpus(test_set)(nlp)))
        assert {"pos_acc", "tag_acc", "ents_f", "cats_score"} <= scores.keys()
        assert scores == {key: pytest.approx(reference[key]) for key in scores}
        assert all(math.isfinite(value) for value in scores.values())
    assert agreement.headline == ["pos_acc", "tag_acc", "ents_f", "cats_score"]


def test_a_pipeline_agrees_with_itself(pair: tuple[Path, Path], test_set: Path) -> None:
    nlp, same = spacy.load(pair[0]), spacy.load(pair[0])
    agreement = measure_agreement(nlp, same, read_documents(test_set, nlp).docs, rounds=0)
    assert {one.agreement for one in agreement.measures} == {1.0}
    assert agreement.original_scores == agreement.candidate_scores == {}
    assert agreement.headline == []


def test_gold_without_annotations_gives_no_scores(pair: tuple[Path, Path]) -> None:
    nlp = spacy.load(pair[0])
    docs = [nlp.make_doc("Ada beat the cup .")]
    gold = [Example(doc, doc.copy()) for doc in docs]
    agreement = measure_agreement(nlp, nlp, docs, gold=gold, rounds=0, alone=False)
    assert agreement.original_scores == {}
    assert "Scores" not in to_text(agreement)


def test_documents_stay_as_they_are(pair: tuple[Path, Path]) -> None:
    """Their annotations are not the pipelines' to see, nor to change."""
    nlp = spacy.load(pair[0])
    doc = Doc(nlp.vocab, ["Ada", "beat"], tags=["X", "Y"], spaces=[False, False])
    before = doc.to_bytes()
    measure_agreement(nlp, nlp, [doc], rounds=1)
    assert doc.to_bytes() == before


# Token vectors


def test_vectors(bert_dir: Path) -> None:
    nlp, other = make_nlp(bert_dir), make_nlp(bert_dir)
    bias = torch_model_of(other).get_parameter("embeddings.LayerNorm.bias")
    bias.data += 0.3
    texts = ["Ann  visited Rome.", "We like pizza", ""]
    documents = [nlp.make_doc(text) for text in texts]
    agreement = measure_agreement(nlp, other, documents, rounds=0)
    pairs = [
        (a, b) for text in texts for a, b in zip(nlp(text).tensor, other(text).tensor, strict=True)
    ]
    differences = np.abs(np.array([a - b for a, b in pairs]))
    cosines = [
        float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)) for a, b in pairs if a.any() or b.any()
    ]
    assert len(cosines) == len(pairs) - 1, "whitespace has no vector"
    assert agreement.vectors is not None
    assert agreement.vectors.max == pytest.approx(differences.max(), rel=1e-4)
    assert agreement.vectors.mean == pytest.approx(differences.mean(), rel=1e-4)
    assert agreement.vectors.cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert agreement.vectors.cosine < 0.999
    for alone in (agreement.original_vectors_alone, agreement.candidate_vectors_alone):
        assert alone is not None
        assert alone.max < 1e-5
        assert alone.cosine == pytest.approx(1)
    assert agreement.measures == []
    assert agreement.lowest is None
    assert agreement.to_dict()["lowest"] is None
    assert "mean cosine" in to_text(agreement)


def test_vectors_of_other_widths_or_none() -> None:
    def write(width: int) -> Callable[[Doc, int], None]:
        def set_tensor(doc: Doc, size: int) -> None:
            doc.tensor = np.ones((len(doc), width), dtype="float32")
            doc[0].tag_ = "X"

        return set_tensor

    def make(width: int) -> Language:
        return pipeline(("p", ["doc.tensor", "token.tag"], write(width)))

    assert agree(make(4), make(5)).vectors is None
    none = pipeline(("p", ["doc.tensor", "token.tag"], set_each("tag_", ["X"] * 11)))
    assert agree(make(4), none).vectors is None
    same = agree(make(4), make(4)).vectors
    assert same is not None
    assert (same.max, same.mean, same.cosine) == (0, 0, pytest.approx(1))

    # A vector against none: a cosine of 0, where none against none does not count.
    def zeros(doc: Doc, size: int) -> None:
        doc.tensor = np.zeros((len(doc), 4), dtype="float32")

    def one(doc: Doc, size: int) -> None:
        zeros(doc, size)
        doc.tensor[0] = 1

    vectors = agree(
        pipeline(("p", ["doc.tensor"], zeros)), pipeline(("p", ["doc.tensor"], one))
    ).vectors
    assert vectors is not None
    assert (vectors.max, vectors.cosine) == (1, 0)


# Speed, size, tables


def test_speed_size_and_tables(pair: tuple[Path, Path], test_set: Path) -> None:
    original, candidate = map(spacy.load, pair)
    documents = read_documents(test_set, original, limit=10)
    said: list[str] = []
    agreement = measure_agreement(
        original, candidate, documents.docs, gold=documents.gold, paths=pair, log=said.append
    )
    assert agreement.speeds is not None
    rounds = [[each.words_per_second for each in speed.passes] for speed in agreement.speeds]
    medians = [speed.words_per_second(agreement.batch_size).median for speed in agreement.speeds]
    for rates, median in zip(rounds, medians, strict=True):
        assert len(rates) == 3
        assert min(rates) > 0
        assert median == sorted(rates)[1]
    assert agreement.original_bytes == sum(
        file.stat().st_size for file in pair[0].rglob("*") if file.is_file()
    )
    assert any("one document at a time" in message for message in said)
    record = json.loads(json.dumps(agreement.to_dict()))
    assert record["speeds"]["candidate"] == {"words_per_second": medians[1], "rounds": rounds[1]}
    assert record["measures"][2]["annotation"] == "token.tag"
    assert agreement.lowest is not None
    assert record["lowest"]["agreement"] == agreement.lowest.agreement
    assert agreement.lowest.agreement == min(one.agreement for one in agreement.measures)

    text, markdown = to_text(agreement), to_markdown(agreement)
    rate = f"{medians[0]:,.0f}"
    f_score = f"{agreement.candidate_scores['ents_f'] * 100:.2f}"
    for table in (text, markdown):
        for cell in ("textcat_multilabel", "token.ent_iob+type", "candidate alone", rate, f_score):
            assert cell in table
        assert "10 documents" in table
        assert "median of 3 rounds" in table
        assert "Token vectors" not in table, "there are none"
    assert f"| pipeline | words/s | {TIMES} original | MB on disk |" in markdown


def test_only_full_agreement_is_a_hundred_percent() -> None:
    n = len(WORDS)
    nlp = pipeline(("p", ["token.tag"], set_each("tag_", ["A"] * n)))
    agreement = agree(nlp, nlp)
    assert "100.00" in to_text(agreement)
    (measure,) = agreement.measures
    nearly = replace(agreement, measures=[replace(measure, agreement=0.99999)])
    assert "99.99" in to_text(nearly)
    assert "100.00" not in to_text(nearly)
    # A value that was not measured has no column.
    assert "alone" not in to_text(agreement).partition("documents, ")[0]
    assert "words/s" not in to_text(agreement)


def test_docs_without_tokens_and_of_one() -> None:
    def write(doc: Doc, size: int) -> None:
        for token in doc:
            token.is_sent_start = token.i == 0

    nlp = pipeline(("p", ["doc.sents", "token.tag", "doc.ents"], write))
    documents = [nlp.make_doc(text) for text in ("", "One", "Two words")]
    measures = measure_agreement(nlp, nlp, documents, rounds=0).measures
    assert {one.annotation: one.n for one in measures} == {
        "token.tag": 3,
        "token.is_sent_start": 3,
        "doc.sents": 4,
        "token.ent_iob+type": 3,
        "doc.ents": 0,
    }
    assert {one.agreement for one in measures} == {1.0}


def test_what_cannot_be_compared_is_named() -> None:
    def write(doc: Doc, size: int) -> None:
        doc[0].tag_ = "X"

    nlp = pipeline(("p", ["doc._.trf_data", "token.tag"], write))
    agreement = agree(nlp, nlp)
    assert agreement.not_compared == ["p: doc._.trf_data"]
    assert "Not compared: p: doc._.trf_data." in to_markdown(agreement)


def test_errors() -> None:
    tags = set_each("tag_", ["A"] * 11)
    nlp = pipeline(("p", ["token.tag"], tags))
    with pytest.raises(CorpusError, match="0 documents, none of which has a token"):
        measure_agreement(nlp, nlp, [])
    with pytest.raises(CorpusError, match="1 documents, none of which has a token"):
        measure_agreement(nlp, nlp, [nlp.make_doc("")])
    other = pipeline(("q", ["token.tag"], tags))
    with pytest.raises(ConfigError, match="original has p; the candidate has q"):
        agree(nlp, other)
    nothing = pipeline(("p", [], lambda doc, size: None))
    with pytest.raises(ConfigError, match="nothing to compare: no pipe of p writes"):
        agree(nothing, nothing)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        agree(nlp, nlp, batch_size=0)
    with pytest.raises(ConfigError, match="rounds = -1"):
        agree(nlp, nlp, rounds=-1)
    gold = [Example(nlp.make_doc("Other"), nlp.make_doc("Other"))]
    with pytest.raises(CorpusError, match="expected the same texts in the same order"):
        agree(nlp, nlp, gold=gold)
    with pytest.raises(CorpusError, match=r"gold \(0 documents\)"):
        agree(nlp, nlp, gold=[])
