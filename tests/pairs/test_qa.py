"""`distil_qa`: answers as spans of docs, SQuAD's format and scores, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.hugging_face import load_classifier
from spacy_distil.pairs.qa_pipe import DistilQA
from spacy_distil.pairs.spans import IMPOSSIBLE, find_spans
from spacy_distil.pairs.squad import Squad, normalize, read_squad, score_answer
from tests.pairs.conftest import ODD, build, shim_of, write_classifier
from tests.util import SENTENCES, adam, encoder_of

QUESTIONS = ("Who visited Rome?", "When?", "What do we like?")


def qa_of(nlp: Language) -> DistilQA:
    pipe = nlp.get_pipe("qa")
    assert isinstance(pipe, DistilQA)
    return pipe


def example(nlp: Language, text: str, *answered: tuple[str, str | None]) -> Example:
    """answered: questions and words of the text, None for no answer."""
    predicted, reference = nlp.make_doc(text), nlp.make_doc(text)
    for doc in (predicted, reference):
        doc._.questions = [question for question, _ in answered]
    reference._.answers = [
        [] if words is None else [{"text": words, "start": text.index(words)}]
        for _, words in answered
    ]
    return Example(predicted, reference)


@pytest.fixture
def gold(qa: Language) -> list[Example]:
    return [
        example(qa, SENTENCES[0], ("Who visited Rome?", None), ("When?", "the spring of 2021")),
        example(qa, SENTENCES[1], ("What do we like?", "unbelievable pizza")),
        example(qa, "Ann left. Bob stayed.", ("Who left?", "Ann"), ("Who stayed?", "Bob")),
    ]


def test_logits_are_those_of_transformers(encoder_dir: Path, tmp_path: Path) -> None:
    """The begin of a token is the one of its first piece, its end the one of its last piece."""
    if "ModernBert" in transformers.AutoConfig.from_pretrained(encoder_dir).architectures[0]:
        pytest.skip("its head for questions has a hidden layer")
    model = write_classifier(tmp_path, encoder_dir, "QuestionAnswering")
    nlp = load_classifier(tmp_path, "en", tell=print)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for question, text in zip(QUESTIONS, SENTENCES, strict=False):
        doc = nlp(text)
        (logits,) = qa_of(nlp).predict_pairs([(question, doc)])
        settings = {"return_offsets_mapping": True, "return_token_type_ids": True}
        inputs = tokenizer(question, text, return_tensors="pt", **settings)
        offsets, sequence = inputs.pop("offset_mapping")[0].tolist(), inputs.sequence_ids()
        if getattr(model.config, "type_vocab_size", 1) < 2:
            inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model(**inputs)
        sides = output.start_logits[0].numpy(), output.end_logits[0].numpy()
        np.testing.assert_allclose(logits[0], [side[0] for side in sides], atol=1e-5)
        for token in doc:
            pieces = [
                i
                for i, (start, end) in enumerate(offsets)
                if sequence[i] == 1
                and text[start:end].strip()
                and start < token.idx + len(token)
                and end - (len(text[start:end]) - len(text[start:end].rstrip())) > token.idx
                and start + len(text[start:end]) - len(text[start:end].lstrip())
                < token.idx + len(token)
            ]
            expected = sides[0][pieces[0]], sides[1][pieces[-1]]
            np.testing.assert_allclose(logits[1 + token.i], expected, atol=1e-5)


def test_windows_of_a_long_doc(bert_dir: Path) -> None:
    """A token has its largest logits of all windows, no answer its smallest ones."""
    nlp = build(bert_dir, "distil_qa", window=24, overlap=6)
    pipe, encoder = qa_of(nlp), shim_of(nlp, "qa")
    doc = nlp(" ".join(SENTENCES))
    (logits,) = pipe.predict_pairs([("Who visited Rome?", doc)])
    encoded = encoder.encode_pairs([("Who visited Rome?", doc)])
    assert len(encoded.windows) > 5
    rows: Any = encoder.predict_pairs(encoded, pipe.model.ops)
    output = pipe.model.get_ref("output_layer")
    scores = rows @ output.get_param("W").T + output.get_param("b")
    nulls = scores[encoded.first_rows]
    np.testing.assert_allclose(logits[0], nulls.min(axis=0), atol=1e-5)
    several = 0
    for column, pooling in enumerate((encoded.begins, encoded.ends)):
        groups = np.split(pooling.columns, np.cumsum(pooling.lengths)[:-1])
        for token, group in enumerate(groups):
            expected = scores[group, column].max() if len(group) else IMPOSSIBLE
            assert logits[1 + token, column] == pytest.approx(expected, abs=1e-5)
            several += len(group) > 1
    assert several > 10


def naive_spans(
    logits: np.ndarray, max_tokens: int, *, missing: bool
) -> tuple[dict[tuple[int, int], float], float]:
    """The probability of each span, and of no answer, by two loops."""
    n = len(logits) - 1
    scores = {
        (i, j + 1): float(logits[1 + i, 0]) + float(logits[1 + j, 1])
        for i in range(n)
        for j in range(i, min(n, i + max_tokens))
        if logits[1 + i, 0] > IMPOSSIBLE and logits[1 + j, 1] > IMPOSSIBLE
    }
    null = float(logits[0, 0]) + float(logits[0, 1])
    total = logsumexp([*scores.values(), *([null] if missing else [])]) if scores or missing else 0
    return {span: float(np.exp(score - total)) for span, score in scores.items()}, null


@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.just(2)),
        elements=st.floats(-20, 20, width=32),
    ),
    impossible=st.sets(st.integers(0, 11)),
    n_best=st.integers(1, 5),
    max_tokens=st.integers(1, 5),
    missing=st.booleans(),
)
def test_spans_are_those_of_brute_force(
    logits: np.ndarray, impossible: set[int], n_best: int, max_tokens: int, missing: bool
) -> None:
    logits = logits.copy()
    logits[[1 + i for i in impossible if 1 + i < len(logits)]] = IMPOSSIBLE
    found = find_spans(logits, n_best=n_best, max_tokens=max_tokens, may_be_missing=missing)
    expected, null = naive_spans(logits, max_tokens, missing=missing)
    best = sorted(expected.values(), reverse=True)[:n_best]
    np.testing.assert_allclose(found.probabilities, best, rtol=1e-5)
    np.testing.assert_allclose([expected[span] for span in found.spans], best, rtol=1e-5)
    assert len(set(found.spans)) == len(found.spans)
    if not expected:
        assert found.no_answer == np.inf
    elif missing:
        start, end = found.spans[0]
        score = float(logits[1 + start, 0]) + float(logits[end, 1])
        assert found.no_answer == pytest.approx(null - score, abs=1e-4)
    else:
        assert found.no_answer == -np.inf


def test_answers(qa: Language) -> None:
    pipe = qa_of(qa)
    doc = qa(SENTENCES[0])
    found = pipe.answer(doc, QUESTIONS, n_best=3)
    assert len(found) == 3
    for answers in found:
        assert [each.probability for each in answers] == sorted(
            (each.probability for each in answers), reverse=True
        )
        for answer in answers:
            assert answer.span.doc is doc
            assert answer.text == doc[answer.span.start : answer.span.end].text
    pairs = [(question, qa(text)) for question in QUESTIONS for text in SENTENCES]
    many = pipe.answer_pairs(pairs, 3)
    for (question, other), answers in zip(pairs, many, strict=True):
        (alone,) = pipe.answer(other, question, 3)
        assert [each.text for each in alone] == [each.text for each in answers]
        assert [each.probability for each in alone] == pytest.approx(
            [each.probability for each in answers], abs=1e-5
        )
    assert pipe.answer(doc, []) == []
    with pytest.raises(ConfigError, match="n_best = 0"):
        pipe.answer(doc, "Who?", 0)
    with pytest.raises(ConfigError, match="expected a pair of a question"):
        pipe.answer_pairs([("Who?", "a text")])  # type: ignore[list-item]


def test_no_answer(bert_dir: Path) -> None:
    nlp = build(bert_dir, "distil_qa")
    pipe, doc = qa_of(nlp), nlp(SENTENCES[0])
    (spans,) = pipe.find_spans([("Who?", doc)])
    pipe.cfg["threshold"] = spans.no_answer - 1e-3
    assert pipe.answer(doc, "Who?") == [[]]
    pipe.cfg["threshold"] = spans.no_answer + 1e-3
    assert pipe.answer(doc, "Who?")[0]
    with_null = pipe.answer(doc, "Who?")[0][0].probability
    pipe.cfg["no_answer"] = False
    assert pipe.answer(doc, "Who?")[0][0].probability > with_null


@pytest.mark.parametrize("text", ODD)
def test_odd_texts(text: str, qa: Language) -> None:
    """Empty questions and docs, other scripts, control characters; questions beyond a window."""
    pipe = qa_of(qa)
    doc = qa(text)
    long = " ".join(SENTENCES) * 3
    for question in (*ODD, long):
        (answers,) = pipe.answer(doc, question, n_best=2)
        assert len(answers) <= max(1, len(doc) ** 2)
        assert all(each.text.strip() for each in answers)
        (others,) = pipe.answer(qa(SENTENCES[0]), question)
        assert len(others) <= 1
    if not text.strip():
        assert pipe.answer(doc, "Who?") == [[]]


def test_a_long_doc(qa: Language) -> None:
    text = " ".join(SENTENCES[:3]) + " "
    doc = qa.make_doc(text * (300_000 // len(text)))
    (answers,) = qa_of(qa).answer(doc, "Who visited Rome?", n_best=2)
    assert all(0 < len(each.span) <= 30 for each in answers)


def test_questions_of_docs_are_answered_in_a_pipeline(qa: Language) -> None:
    docs = [qa.make_doc(text) for text in SENTENCES[:3]]
    docs[0]._.questions = QUESTIONS[:2]
    docs[2]._.questions = [""]
    qa_of(qa).cfg["threshold"] = 100.0
    try:
        one, two, three = qa.pipe(docs)
        assert [len(each) for each in one._.answers] == [1, 1]
        (answer,) = one._.answers[0]
        assert one.text[answer["start"] : answer["end"]] == answer["text"]
        assert 0 < answer["probability"] <= 1
        assert two._.answers is None
        assert len(three._.answers) == 1
    finally:
        qa_of(qa).cfg["threshold"] = 0.0
    saved = DocBin(docs=[one], store_user_data=True).to_bytes()
    (loaded,) = DocBin().from_bytes(saved).get_docs(qa.vocab)
    assert loaded._.answers == one._.answers
    assert loaded._.questions == list(QUESTIONS[:2])
    for bad in ("Who?", [3], 5):
        with pytest.raises(ConfigError, match="expected a list of strings"):
            two._.questions = bad
    for wrong in (
        [3],
        [[{"text": "a"}]],
        [[{"text": "a", "start": 999}]],
        [[{"text": "a", "start": 0}]],
    ):
        with pytest.raises(ConfigError, match="expected a list for each question"):
            two._.answers = wrong
    two._.questions = None
    two._.answers = None


def test_the_gradient_of_the_loss_by_differences(qa: Language, gold: list[Example]) -> None:
    pipe = qa_of(qa)
    pairs, targets = pipe.read_gold(gold)
    assert [gold[0].predicted[start - 1 : end].text for start, end in targets[1:2]] == [
        "the spring of 2021"
    ]
    assert targets[0] == (0, 0)
    generator = np.random.default_rng(0)
    logits = [generator.normal(size=(1 + len(doc), 2)) for _, doc in pairs]
    loss, d_logits = pipe.get_gold_loss(logits, targets)
    for own, gradient in zip(logits, d_logits, strict=True):
        for place in np.ndindex(own.shape):
            own[place] += 1e-4
            other, _ = pipe.get_gold_loss(logits, targets)
            own[place] -= 1e-4
            assert (other - loss) / 1e-4 == pytest.approx(gradient[place], abs=1e-3)
    expected = sum(
        0.5 * (logsumexp(own[:, column]) - own[row, column])
        for own, rows in zip(logits, targets, strict=True)
        for column, row in enumerate(rows)
    )
    assert loss == pytest.approx(expected)


def test_gradients_of_the_head_are_those_of_torch(bert_dir: Path) -> None:
    """Over windows that overlap: the gradient goes to the window with the largest logit."""
    nlp = build(bert_dir, "distil_qa", window=24, overlap=6)
    pipe, encoder = qa_of(nlp), shim_of(nlp, "qa")
    doc = nlp.make_doc(" ".join(SENTENCES[:2]))
    batch = [example(nlp, doc.text, ("Who visited Rome?", "Ann"))]
    nlp.update(batch, sgd=False)
    transformer: Any = nlp.get_pipe("transformer")
    transformer._close()
    model = encoder.engine.model  # type: ignore[attr-defined]
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    encoded = encoder.encode_pairs([("Who visited Rome?", doc)])
    output = pipe.model.get_ref("output_layer")
    weight, bias = (torch.from_numpy(output.get_param(name)) for name in ("W", "b"))
    windows = []
    for ids, second in zip(encoded.windows, encoded.seconds, strict=True):
        types = torch.from_numpy((np.arange(len(ids)) >= second).astype(np.int64))[None]
        states = model(input_ids=torch.from_numpy(ids)[None], token_type_ids=types)
        windows.append(states.last_hidden_state[0] @ weight.T + bias)
    rows = torch.cat(windows)
    total: Any = 0.0
    for column, pooling in enumerate((encoded.begins, encoded.ends)):
        groups = np.split(pooling.columns, np.cumsum(pooling.lengths)[:-1])
        tokens = [rows[torch.from_numpy(group), column].max() for group in groups]
        null = rows[torch.from_numpy(encoded.first_rows), column].min()
        logits = torch.stack([null, *tokens])
        target = torch.tensor([1])  # the first token is the answer
        total = total + 0.5 * torch.nn.functional.cross_entropy(logits[None], target)
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(found[name], parameter.grad, atol=2e-5, err_msg=name)


def test_it_learns(bert_dir: Path, tmp_path: Path) -> None:
    nlp = build(bert_dir, "distil_qa")
    batch = [
        example(nlp, SENTENCES[0], ("Who visited?", "Ann"), ("Which colour?", None)),
        example(nlp, SENTENCES[1], ("What do we like?", "unbelievable pizza")),
    ]
    optimizer = adam(0.005)
    for _ in range(80):
        nlp.update(batch, sgd=optimizer)
    scores = nlp.evaluate(batch)
    assert scores["qa_em"] == scores["qa_f1"] == scores["qa_no_answer_acc"] == 1.0
    # As `spacy evaluate` reads documents: the predicted docs have the text alone.
    plain = [Example(nlp.make_doc(each.text), each.reference) for each in batch]
    assert nlp.evaluate(plain)["qa_em"] == 1.0
    nlp.to_disk(tmp_path / "qa")
    loaded = spacy.load(tmp_path / "qa")
    (found,) = qa_of(loaded).answer(loaded(SENTENCES[0]), "Who visited?")
    assert found[0].text == "Ann"
    assert shim_of(loaded, "qa") is encoder_of(loaded)


def test_the_tuned_threshold_is_the_best(bert_dir: Path) -> None:
    nlp = build(bert_dir, "distil_qa")
    pipe = qa_of(nlp)
    batch = [
        example(nlp, text, (question, words))
        for text, words in ((SENTENCES[0], "Ann"), (SENTENCES[1], None), (SENTENCES[2], "tokens"))
        for question in QUESTIONS
    ]
    best = pipe.tune_threshold(batch)
    assert nlp.evaluate(batch)["qa_f1"] == pytest.approx(best)
    pairs = [(e.reference._.questions[0], e.predicted) for e in batch]
    for spans in pipe.find_spans(pairs):
        for step in (-1e-3, 1e-3):
            pipe.cfg["threshold"] = spans.no_answer + step
            for each in batch:
                each.predicted._.answers = None
            assert nlp.evaluate(batch)["qa_f1"] <= best + 1e-9
    pipe.cfg["no_answer"] = False
    with pytest.raises(ConfigError, match="has no threshold to tune"):
        pipe.tune_threshold(batch)


# SQuAD


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        # Worked out by hand from the official scripts of SQuAD 1.1 and 2.0.
        ("Denver Broncos", ["Denver Broncos", "The Denver Broncos"], (1.0, 1.0)),
        ("the denver broncos!", ["Denver Broncos"], (1.0, 1.0)),
        ("Denver", ["Denver Broncos"], (0.0, 2 / 3)),
        ("Broncos of Denver", ["Denver Broncos"], (0.0, 0.8)),
        ("Paris", ["Rome"], (0.0, 0.0)),
        ("Paris Paris", ["Paris"], (0.0, 2 / 3)),
        ("", [], (1.0, 1.0)),
        ("Rome", [], (0.0, 0.0)),
        ("", ["Rome"], (0.0, 0.0)),
        ("the", ["Rome"], (0.0, 0.0)),
        ("", ["the"], (1.0, 1.0)),
        ("10\u20135", ["10-5", "10\u20135"], (1.0, 1.0)),
        ("a.m.", ["am"], (1.0, 1.0)),
        ("x an y", ["x y"], (1.0, 1.0)),
    ],
)
def test_scores_are_the_official_ones(
    predicted: str, truth: list[str], expected: tuple[float, float]
) -> None:
    assert score_answer(predicted, truth) == pytest.approx(expected)


def test_normalization() -> None:
    assert normalize("  The  U.S.'s an Apple ") == "uss apple"


def squad(path: Path, **changes: Any) -> Path:
    question = {
        "id": "1",
        "question": "Who visited Rome?",
        "answers": [{"text": "Ann", "answer_start": 0}],
        **changes,
    }
    other = {"question": "Why?", "answers": [], "is_impossible": True}
    paragraph = {"context": SENTENCES[0], "qas": [question, other]}
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    return path


def test_the_format_of_squad(qa: Language, tmp_path: Path) -> None:
    path = squad(tmp_path / "squad.json")
    first, second = Squad(path)(qa)
    assert first.predicted._.questions == first.reference._.questions == ["Who visited Rome?"]
    assert first.reference._.answers == [[{"text": "Ann", "start": 0, "end": 3}]]
    assert first.predicted._.answers is None
    assert second.reference._.answers == [[]]
    assert len(list(Squad(path, limit=1)(qa))) == 1
    with pytest.raises(CorpusError, match="is not at character 1 of its paragraph"):
        list(read_squad(squad(path, answers=[{"text": "Ann", "answer_start": 1}])))
    path.write_text('{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(CorpusError, match="is not in the format of SQuAD"):
        list(read_squad(path))
    path.write_text("{")
    with pytest.raises(CorpusError, match="cannot be read"):
        list(read_squad(path))
    with pytest.raises(CorpusError, match="set the path"):
        list(Squad(None)(qa))


def test_answers_that_do_not_belong_to_questions(qa: Language) -> None:
    doc = qa.make_doc(SENTENCES[0])
    doc._.questions = ["Who?", "When?"]
    doc._.answers = [[]]
    with pytest.raises(ConfigError, match="has 2 questions"):
        qa.update([Example(qa.make_doc(doc.text), doc)])


def test_questions_of_the_predicted_doc(bert_dir: Path) -> None:
    """As in Example.from_dict: the reference has the answers alone."""
    nlp = build(bert_dir, "distil_qa")
    one = example(nlp, SENTENCES[0], ("Who?", "Ann"))
    one.reference._.questions = None
    losses: dict[str, float] = {}
    nlp.update([one], sgd=adam(0.001), losses=losses)
    assert losses["qa"] > 0
    assert "qa_f1" in nlp.evaluate([one])
    one.reference._.answers = None
    assert "qa_f1" not in nlp.evaluate([one])
    other = example(nlp, SENTENCES[0], ("Who?", "Ann"), ("When?", None))
    other.predicted._.answers = [[]]
    with pytest.raises(ConfigError, match=r"has 1 answers in .* and its reference 2 questions"):
        qa_of(nlp).score([other])


def test_errors_of_settings(qa: Language) -> None:
    with pytest.raises(ConfigError, match="expected two extensions"):
        DistilQA(qa.vocab, qa_of(qa).model, questions="answers")
    with pytest.raises(ConfigError, match="max_answer_tokens = 0"):
        DistilQA(qa.vocab, qa_of(qa).model, max_answer_tokens=0)
    Doc.set_extension("taken_by_others", default=None, force=True)
    with pytest.raises(ConfigError, match="is an extension of other code"):
        DistilQA(qa.vocab, qa_of(qa).model, answers="taken_by_others")
    with pytest.raises(ConfigError, match="no questions with known answers"):
        qa_of(qa).tune_threshold([])
