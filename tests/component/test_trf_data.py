from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from spacy.cli.package import get_third_party_dependencies
from spacy.tokens import Doc, DocBin

from spacy_distil.component.interop import TrfData
from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.trf_data import TransformerBatch, TransformerData, WordpieceBatch
from spacy_distil.errors import MissingExtraError
from spacy_distil.export.quantize import quantize
from tests.test_light_import import run_python
from tests.util import (
    SENTENCES,
    WIDTH,
    adam,
    add_heads,
    build_tokenizer,
    encoder_of,
    make_examples,
    make_nlp,
)

registry: Any = spacy.registry
SETTER = {"@annotation_setters": "spacy-distil.TrfData.v1"}
ODD = ("", "  ", *SENTENCES, " \n", "e\u0301 מרחב 👩‍👩‍👧", "x" * 150)


@pytest.fixture(autouse=True)
def extension() -> Iterator[None]:
    """Remove the extension before each test."""
    remove_extension()
    yield
    remove_extension()


def remove_extension() -> None:
    if Doc.has_extension("trf_data"):
        Doc.remove_extension("trf_data")


def make_trf_nlp(name: Path, pipes: Sequence[str] = (), setter: Any = SETTER, **model: Any) -> Any:
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(name), **model}
    config = {"model": model, "set_extra_annotations": setter}
    nlp.add_pipe("distil_transformer", name="transformer", config=config)
    add_heads(nlp, pipes)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def make_twin(name: Path, window: int = 128, stride: int = 96) -> Any:
    """Make the same encoder in spacy-transformers."""
    pytest.importorskip("spacy_transformers", reason="the extra 'interop' is not installed")
    nlp = spacy.blank("en")
    spans = {"@span_getters": "spacy-transformers.strided_spans.v1"}
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(name),
        "get_spans": {**spans, "window": window, "stride": stride},
    }
    nlp.add_pipe("transformer", config={"model": model})
    pipe: Any = nlp.get_pipe("transformer")
    pipe.model.initialize()
    return nlp


def assert_same_data(ours: TransformerData, theirs: Any) -> None:
    """Compare all but the vectors of padding, which are zeros in our data."""
    lengths = theirs.wordpieces.lengths
    assert len(ours.wordpieces) == len(theirs.wordpieces)
    assert ours.wordpieces.lengths == lengths
    assert ours.align.lengths.tolist() == theirs.align.lengths.tolist()
    assert ours.align.lengths.dtype == theirs.align.lengths.dtype
    assert ours.align.dataXd.dtype == theirs.align.dataXd.dtype
    if not lengths:
        # A difference: its data of an empty doc have no last_hidden_state.
        assert ours.model_output.last_hidden_state.shape[:2] == (0, 0)
        assert theirs.tensors == ()
        assert ours.wordpieces.input_ids.shape == theirs.wordpieces.input_ids.shape
        return
    # Its grids are as long as the longest window of the whole batch.
    length = max(lengths)
    rows = theirs.align.dataXd
    grid = theirs.wordpieces.input_ids.shape[1]
    np.testing.assert_array_equal(ours.align.dataXd, rows // grid * length + rows % grid)
    assert ours.wordpieces.strings == [window[:length] for window in theirs.wordpieces.strings]
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        mine, other = getattr(ours.wordpieces, name), getattr(theirs.wordpieces, name)
        if mine is not None:  # the twin's tokenizer always makes token types
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other[:, :length])
    assert ours.width == theirs.width == WIDTH
    mine, other = ours.tensors[0], theirs.tensors[0]
    assert mine is ours.model_output.last_hidden_state is ours.model_output[0]
    assert (mine.dtype, mine.shape) == (other.dtype, (len(lengths), length, WIDTH))
    for vectors, expected, n_pieces in zip(mine, other, lengths, strict=True):
        np.testing.assert_allclose(vectors[:n_pieces], expected[:n_pieces], rtol=0, atol=1e-5)
        assert not vectors[n_pieces:].any()


# Against spacy-transformers


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_the_same_as_of_spacy_transformers(encoder_dirs: dict[str, Path], family: str) -> None:
    theirs, ours = make_twin(encoder_dirs[family]), make_trf_nlp(encoder_dirs[family])
    texts = [text for text in ODD if len(text) < 65]
    for mine, other in zip(ours.pipe(texts), theirs.pipe(texts), strict=True):
        assert_same_data(mine._.trf_data, other._.trf_data)
        for token in mine[:-1]:
            span = slice(token.i, token.i + 2)
            np.testing.assert_allclose(
                piece_vectors(mine, span), piece_vectors(other, span), rtol=0, atol=1e-5
            )


def piece_vectors(doc: Doc, span: slice) -> Any:
    """Read the vectors as users do."""
    data = doc._.trf_data
    rows = data.align[span].data.flatten()
    return data.tensors[0].reshape(-1, data.width)[rows]


def test_the_same_windows_as_of_spacy_transformers(bert_dir: Path) -> None:
    """Its windows count tokens, so each token is one piece here."""
    theirs = make_twin(bert_dir, window=16, stride=12)
    ours = make_trf_nlp(bert_dir, window=16 + 2, overlap=4, max_batch_pieces=40)
    texts = [" ".join("abcde"[i % 5] for i in range(n)) for n in (5, 16, 38, 40, 100)]
    docs = list(ours.pipe(texts))
    assert [len(doc._.trf_data.wordpieces) for doc in docs] == [1, 1, 3, 3, 8]
    for mine, other in zip(docs, theirs.pipe(texts), strict=True):
        assert_same_data(mine._.trf_data, other._.trf_data)
    assert set(docs[2]._.trf_data.align.lengths) == {1, 2}


def test_data_of_nothing_is_that_of_spacy_transformers() -> None:
    classes = pytest.importorskip("spacy_transformers.data_classes")
    pairs: list[tuple[Any, Any]] = [
        (TransformerData.empty(), classes.TransformerData.empty()),
        (TransformerData.zeros(3, WIDTH), classes.TransformerData.zeros(3, WIDTH)),
    ]
    for ours, theirs in pairs:
        assert_same_data(ours, theirs)
        assert ours.wordpieces.input_ids.dtype == theirs.wordpieces.input_ids.dtype
        assert ours.wordpieces.attention_mask.dtype == theirs.wordpieces.attention_mask.dtype
        assert ours.to_dict().keys() == theirs.to_dict().keys()
        assert vars(ours.wordpieces).keys() == vars(theirs.wordpieces).keys()
    with pytest.raises(AttributeError, match="No model output 'pooler_output'"):
        _ = TransformerData.zeros(3, WIDTH).model_output.pooler_output


@pytest.mark.parametrize("ours_first", [True, False])
def test_both_packages_use_the_extension(bert_dir: Path, ours_first: bool) -> None:
    """And the registry, which spacy-transformers creates again when it is imported."""
    makers: list[Callable[[Path], Any]] = [make_trf_nlp, make_twin]
    if not ours_first:
        makers.reverse()
    pipelines = [make(bert_dir) for make in makers]
    importlib.reload(importlib.import_module("spacy_transformers.util"))
    assert registry.annotation_setters.get("spacy-distil.TrfData.v1") is TrfData
    for nlp in pipelines:
        assert nlp(SENTENCES[0])._.trf_data.width == WIDTH
    # Leftovers of a spacy-transformers config work as well.
    setter = {"@annotation_setters": "spacy-transformers.null_annotation_setter.v1"}
    assert make_trf_nlp(bert_dir, setter=setter)(SENTENCES[0])._.trf_data.width == WIDTH


# Against transformers and against a loop


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_all_pieces_have_the_vectors_of_transformers(
    encoder_dirs: dict[str, Path], family: str, tmp_path: Path
) -> None:
    """On both engines."""
    encoder_dir = encoder_dirs[family]
    nlp = make_trf_nlp(encoder_dir, window=20, overlap=6)
    nlp.to_disk(tmp_path / "torch")
    quantize(tmp_path / "torch", tmp_path / "onnx", precision="fp32")
    model: Any = transformers.AutoModel.from_pretrained(encoder_dir).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoder_dir)
    for candidate in (nlp, spacy.load(tmp_path / "onnx")):
        for doc in candidate.pipe(ODD):
            data = doc._.trf_data
            pieces = data.wordpieces
            if not len(doc):
                assert data.tensors[0].shape == (0, 0, WIDTH)
                continue
            assert data.tensors[0].shape == (*pieces.input_ids.shape, WIDTH)
            assert pieces.attention_mask.sum(axis=1).tolist() == pieces.lengths
            windows = zip(
                pieces.strings, pieces.input_ids, pieces.lengths, data.tensors[0], strict=True
            )
            for strings, ids, length, vectors in windows:
                assert strings == tokenizer.convert_ids_to_tokens(ids.tolist())
                assert strings[0] == (tokenizer.cls_token or strings[0])
                assert set(strings[length:]) <= {tokenizer.pad_token}
                with torch.inference_mode():
                    ids = torch.tensor(ids[None, :length])
                    expected = model(ids, torch.ones_like(ids)).last_hidden_state
                np.testing.assert_allclose(vectors[:length], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "max"])
def test_alignment_lists_all_pieces_of_a_token(bert_dir: Path, pooling: str) -> None:
    """In all windows, with any pooling."""
    nlp = make_trf_nlp(bert_dir, window=20, overlap=6, pooling=pooling)
    tokenizer = build_tokenizer("bert")
    n_twice = 0
    for doc in nlp.pipe(ODD):
        data, all_pieces = doc._.trf_data, tokenizer.encode(doc.text, add_special_tokens=False)
        assert len(data.align.lengths) == len(doc)
        strings = [piece for window in data.wordpieces.strings for piece in window]
        for token in doc:
            rows = data.align[token.i].data.flatten().tolist()
            assert rows == sorted(set(rows))
            expected = [
                piece
                for piece, (start, end) in zip(all_pieces.tokens, all_pieces.offsets, strict=True)
                if start < token.idx + len(token) and end > token.idx
            ]
            is_twice = len(rows) > len(expected)
            assert [strings[row] for row in rows] == expected * (1 + is_twice)
            n_twice += is_twice
    assert n_twice > 5


def test_a_doc_without_pieces_has_its_special_ones(bert_dir: Path) -> None:
    """But a doc without tokens has no windows. Code for other docs works on it."""
    nlp = make_trf_nlp(bert_dir)
    empty, blank = nlp.pipe(["", " \n "])
    data = empty._.trf_data
    assert data.tensors[0] is data.model_output.last_hidden_state
    assert (data.tensors[0].shape, data.tensors[0].dtype) == ((0, 0, WIDTH), np.float32)
    assert data.model_output.last_hidden_state.reshape(-1, data.width).shape == (0, WIDTH)
    assert TransformerData.empty().from_bytes(data.to_bytes()).width == WIDTH
    assert blank._.trf_data.wordpieces.strings == [["[CLS]", "[SEP]"]]
    assert blank._.trf_data.tensors[0].shape == (1, 2, WIDTH)
    assert blank._.trf_data.align.lengths.tolist() == [0] * len(blank)
    assert not blank.tensor.any()


def test_token_types_are_there_where_the_encoder_has_some(encoder_dirs: dict[str, Path]) -> None:
    for family, has_types in {"bert": True, "roberta": False, "distilbert": False}.items():
        pieces = make_trf_nlp(encoder_dirs[family])("Ann")._.trf_data.wordpieces
        assert (pieces.token_type_ids is not None) == has_types
        assert pieces.to_hf_dict().keys() - {"token_type_ids"} == {
            "input_ids",
            "attention_mask",
            "input_texts",
        }
        assert ("token_type_ids" in pieces.to_hf_dict()) == has_types
        assert torch.equal(pieces.to_hf_dict()["input_ids"], torch.tensor(pieces.input_ids))


# Costs and side effects


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_token_vectors_stay_as_they_are(encoder_dirs: dict[str, Path], family: str) -> None:
    encoder_dir = encoder_dirs[family]
    plain = make_nlp(encoder_dir, ["tagger"], window=20, overlap=6)
    nlp = make_trf_nlp(encoder_dir, ["tagger"], window=20, overlap=6)
    for doc, expected in zip(nlp.pipe(ODD, batch_size=3), plain.pipe(ODD), strict=True):
        np.testing.assert_allclose(doc.tensor, expected.tensor, rtol=0, atol=1e-6)


def test_one_forward_for_both(bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp, plain = make_trf_nlp(bert_dir), make_nlp(bert_dir)
    n_forwards = []
    for each in (nlp, plain):
        engine: Any = encoder_of(each).engine
        calls: list[Any] = []
        engine.model.register_forward_hook(lambda *args, calls=calls: calls.append(args))
        list(each.pipe(SENTENCES))
        n_forwards.append(len(calls))
    assert n_forwards == [1, 1]


def test_nothing_happens_without_a_setter(bert_dir: Path) -> None:
    doc = make_nlp(bert_dir)(SENTENCES[0])
    assert not Doc.has_extension("trf_data")
    assert doc.user_data == {}


def test_docs_keep_copies_of_their_own(bert_dir: Path) -> None:
    """A view would keep a whole batch alive."""
    for doc in make_trf_nlp(bert_dir, window=20, overlap=6).pipe(SENTENCES):
        data = doc._.trf_data
        pieces = data.wordpieces
        arrays = [*data.tensors, pieces.input_ids, pieces.attention_mask, data.align.dataXd]
        for array in [*arrays, data.align.lengths, pieces.token_type_ids, doc.tensor]:
            assert array.base is None or array.base.nbytes == array.nbytes


# Travelling


def assert_equal_data(left: TransformerData, right: TransformerData) -> None:
    assert type(left) is type(right)
    assert type(left.model_output) is type(right.model_output)
    assert left.wordpieces.strings == right.wordpieces.strings
    assert left.wordpieces.lengths == right.wordpieces.lengths
    assert left.model_output.keys() == right.model_output.keys()
    arrays: Any = zip(
        [*left.tensors, *vars(left.wordpieces).values(), left.align.dataXd, left.align.lengths],
        [*right.tensors, *vars(right.wordpieces).values(), right.align.dataXd, right.align.lengths],
        strict=True,
    )
    for a, b in arrays:
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        np.testing.assert_array_equal(np.array(a, dtype=object), np.array(b, dtype=object))


@pytest.mark.parametrize("way", ["bytes", "docbin", "pickle", "deepcopy", "copy"])
def test_docs_travel(bert_dir: Path, way: str) -> None:
    nlp = make_trf_nlp(bert_dir, window=20, overlap=6)
    ways: dict[str, Callable[[Doc], Doc]] = {
        "bytes": lambda doc: Doc(nlp.vocab).from_bytes(doc.to_bytes()),
        "docbin": lambda doc: next(
            DocBin()
            .from_bytes(DocBin(store_user_data=True, docs=[doc]).to_bytes())
            .get_docs(nlp.vocab)
        ),
        "pickle": lambda doc: pickle.loads(pickle.dumps(doc)),
        "deepcopy": copy.deepcopy,
        "copy": lambda doc: doc.copy(),
    }
    for doc in nlp.pipe(ODD):
        assert_equal_data(ways[way](doc)._.trf_data, doc._.trf_data)
        data = doc._.trf_data
        assert_equal_data(TransformerData.empty().from_bytes(data.to_bytes()), data)


def test_some_windows(bert_dir: Path) -> None:
    doc = make_trf_nlp(bert_dir, window=20, overlap=6)(SENTENCES[2])
    pieces = doc._.trf_data.wordpieces
    assert len(pieces) > 2
    last = pieces[len(pieces) - 1]
    assert isinstance(last, WordpieceBatch)
    assert (last.strings, last.lengths) == (pieces.strings[-1:], pieces.lengths[-1:])
    np.testing.assert_array_equal(pieces[1:].input_ids, pieces.input_ids[1:])
    for index in (-1, np.int64(len(pieces) - 1)):
        assert pieces[index].strings == last.strings
        np.testing.assert_array_equal(pieces[index].input_ids, last.input_ids)
    with pytest.raises(IndexError):
        pieces[len(pieces)]


def test_several_processes(bert_dir: Path) -> None:
    nlp = make_trf_nlp(bert_dir, ["tagger"])
    texts = ODD * 2
    for doc, text in zip(nlp.pipe(texts, n_process=2, batch_size=5), texts, strict=True):
        expected = nlp(text)
        np.testing.assert_allclose(doc.tensor, expected.tensor, rtol=0, atol=1e-5)
        data, wanted = doc._.trf_data, expected._.trf_data
        assert data.wordpieces.strings == wanted.wordpieces.strings
        for array, other in zip(data.tensors, wanted.tensors, strict=True):
            np.testing.assert_allclose(array, other, rtol=0, atol=1e-5)


# The life of the component


def test_the_setting_is_saved(bert_dir: Path, tmp_path: Path) -> None:
    nlp = make_trf_nlp(bert_dir, ["tagger"])
    expected = nlp(SENTENCES[0])
    nlp.to_disk(tmp_path)
    from_disk = spacy.load(tmp_path)
    assert from_disk.config["components"]["transformer"]["set_extra_annotations"] == SETTER
    from_bytes = make_trf_nlp(bert_dir, ["tagger"]).from_bytes(nlp.to_bytes())
    sourced = spacy.blank("en")
    sourced.add_pipe("transformer", source=nlp)
    for other in (from_disk, from_bytes, sourced):
        assert_equal_data(other(SENTENCES[0])._.trf_data, expected._.trf_data)
    off = spacy.load(tmp_path, config={"components.transformer.set_extra_annotations": None})
    assert off(SENTENCES[0])._.trf_data is None


def test_the_component_goes_through_pickle(bert_dir: Path) -> None:
    pipe = make_trf_nlp(bert_dir).get_pipe("transformer")
    again = pickle.loads(pickle.dumps(pipe))
    remove_extension()  # as in a new process
    nlp = spacy.blank("en")
    doc = again(nlp.make_doc(SENTENCES[0]))
    assert_equal_data(doc._.trf_data, pipe(nlp.make_doc(SENTENCES[0]))._.trf_data)


def test_a_head_with_an_encoder_of_its_own(bert_dir: Path) -> None:
    nlp = make_trf_nlp(bert_dir, ["tagger"])
    expected = nlp(SENTENCES[0])._.trf_data
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    assert_equal_data(nlp(SENTENCES[0])._.trf_data, expected)


def test_a_package_requires_nothing_more(bert_dir: Path) -> None:
    assert get_third_party_dependencies(make_trf_nlp(bert_dir).config) == (
        get_third_party_dependencies(make_nlp(bert_dir).config)
    )


def test_setting_one_by_hand(bert_dir: Path) -> None:
    """As in the documentation of spacy-transformers. The setter is called once per batch."""
    nlp = make_nlp(bert_dir)
    batches: list[TransformerBatch] = []

    def setter(docs: list[Doc], batch: TransformerBatch) -> None:
        assert [doc._.trf_data for doc in docs] == batch.doc_data
        batches.append(batch)

    pipe: DistilTransformerPipe = nlp.get_pipe("transformer")
    pipe.set_extra_annotations = setter
    docs = list(nlp.pipe(SENTENCES, batch_size=2))
    assert [len(batch.doc_data) for batch in batches] == [2, 2, 1]
    assert [doc._.trf_data for doc in docs] == [data for each in batches for data in each.doc_data]
    assert pipe.predict([]) == []
    pipe.set_extra_annotations = None
    assert nlp(SENTENCES[0])._.trf_data is None


def test_training_sets_it_where_the_component_annotates(bert_dir: Path) -> None:
    nlp = make_trf_nlp(bert_dir, ["tagger"])
    annotated: list[Doc] = []
    nlp.get_pipe("transformer").set_extra_annotations = lambda docs, batch: annotated.extend(docs)
    for annotates in ([], ["transformer"]):
        nlp.update(make_examples(nlp), sgd=adam(), annotates=annotates)
        assert len(annotated) == (16 if annotates else 0)
    assert all(doc._.trf_data.width == WIDTH for doc in annotated)


@pytest.mark.slow
def test_without_torch_and_spacy_transformers(onnx_pipeline: Path, tmp_path: Path) -> None:
    """Docs of another process can be read before there is a pipeline."""
    config = {"components": {"transformer": {"set_extra_annotations": SETTER}}}
    doc = spacy.load(onnx_pipeline, config=config)("Ann visited Rome.")
    DocBin(store_user_data=True, docs=[doc]).to_disk(tmp_path / "docs.spacy")
    out = run_python(
        f"""
        import spacy
        from spacy.tokens import Doc, DocBin

        nlp = spacy.blank("en")
        (read,) = DocBin().from_disk({str(tmp_path / "docs.spacy")!r}).get_docs(nlp.vocab)
        (data,) = read.user_data.values()
        print(type(data).__module__)
        nlp = spacy.load({str(onnx_pipeline)!r}, config={config!r})
        doc = nlp("Ann visited Rome.")
        again = Doc(nlp.vocab).from_bytes(doc.to_bytes())
        for each in (doc, again, read):
            data = each._.trf_data
            print(data.tensors[0].shape, data.wordpieces.strings[0][:2], data.align.lengths[0])
        try:
            data.tokens
        except ImportError as error:
            print(type(error).__name__, error)
        print(sorted(set(sys.modules) & {{"torch", "transformers", "spacy_transformers"}}))
        """,
        block=True,
    )
    module, first, second, third, error, heavy = out.splitlines()
    assert module == "spacy_distil.component.trf_data"
    assert first == second == third
    assert "['[CLS]', " in first
    assert MissingExtraError.__name__ in error
    assert "pip install 'spacy-distil[train]'" in error
    assert heavy == "[]"
