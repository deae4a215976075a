"""Canaries: one test for each private part of another package that this package uses.

Such a part may change in any release. Each test uses it as we do, and its failure says which of our
files depends on it and what to replace it by.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from thinc.api import Adam, Linear, Model

from tests.util import (
    LISTENER,
    STOCK_LISTENER,
    build_tokenizer,
    make_examples,
    make_nlp,
)


@contextmanager
def canary(advice: str) -> Iterator[None]:
    """Fail with the advice, whatever goes wrong."""
    try:
        yield
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}\n{advice}")


# torch


def test_torch_linear_pointwise() -> None:
    advice = (
        "spacy_distil/engines/onednn.py multiplies with torch.ops.mkldnn._linear_pointwise. See "
        "which operator torch/_inductor/fx_passes/mkldnn_fusion.py uses now, or delete the module: "
        "torch.nn.Linear computes the same, slower on AMD CPUs."
    )
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    with canary(advice):
        x, weight, bias = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, bias))
        y = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        torch.testing.assert_close(y, torch.nn.functional.linear(x, weight))


def test_torch_is_in_bad_fork() -> None:
    advice = (
        "spacy_distil/engines/torch.py asks torch.cuda._is_in_bad_fork() before it moves a batch "
        "to a GPU. Set a flag of our own with os.register_at_fork(after_in_child=...) instead."
    )
    with canary(advice):
        assert torch.cuda._is_in_bad_fork() is False


def test_torch_dynamo_exception() -> None:
    advice = (
        "spacy_distil/distillation/encoder/compilation.py catches "
        "torch._dynamo.exc.TorchDynamoException. Catch the exception that torch.compile raises now "
        "if it finds no C++ compiler."
    )
    with canary(advice):
        from torch._dynamo.exc import TorchDynamoException

        assert issubclass(TorchDynamoException, RuntimeError)


# transformers


def test_transformers_backend_tokenizer() -> None:
    advice = (
        "spacy_distil/engines/pretrained.py, students/teachers.py, text/packing.py and "
        "distillation/encoder/corpus.py use the `tokenizers.Tokenizer` behind a fast tokenizer as "
        "`backend_tokenizer`. Find its new name, or load it from tokenizer.json."
    )
    with canary(advice):
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=build_tokenizer("bert"), sep_token="[SEP]"
        )
        backend = fast.backend_tokenizer
        assert type(backend.model).__name__ == "WordPiece"
        backend.no_truncation()
        backend.no_padding()
        assert '"WordPiece"' in backend.to_str()
        backend.encode_special_tokens = True
        (encoding,) = backend.encode_batch_fast(["[SEP]"], add_special_tokens=False)
        assert fast.sep_token_id not in encoding.ids


# accelerate


def test_accelerate_reset_state() -> None:
    advice = (
        "spacy_distil/distillation/encoder/run.py resets accelerate's state of an earlier run with "
        "AcceleratorState._reset_state and GradientState._reset_state. See how accelerate's own "
        "tests (accelerate/test_utils/testing.py) reset it now."
    )
    with canary(advice):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState

        for precision in ("no", "bf16"):  # without the reset the second one raises an error
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            accelerator = Accelerator(cpu=True, mixed_precision=precision)
            assert accelerator.mixed_precision == precision
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


# CPython and ONNX Runtime


def test_an_extra_reference_keeps_a_session() -> None:
    advice = (
        "spacy_distil/engines/onnx.py gives ONNX Runtime's sessions an extra reference with "
        "ctypes.pythonapi.Py_IncRef in a forked child, so that they are never deleted. Keep them "
        "in a list of the module instead, and leave the child with os._exit."
    )
    with canary(advice):
        import onnxruntime

        session = onnxruntime.InferenceSession.__new__(onnxruntime.InferenceSession)
        before = sys.getrefcount(session)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        assert sys.getrefcount(session) == before + 1
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(session))


# spaCy


def test_spacy_cli_util() -> None:
    advice = (
        "spacy_distil/cli/*.py and distillation/pipeline/run.py use app, NoSuchOption, "
        "parse_config_overrides, string_to_list and setup_gpu of spacy.cli._util. Find their new "
        "home; each of the last three is a few lines to write anew, and `app` must be the Typer of "
        "`python -m spacy`."
    )
    with canary(advice):
        from spacy.cli._util import (
            NoSuchOption,
            app,
            parse_config_overrides,
            setup_gpu,
            string_to_list,
        )

        assert any(group.name == "project" for group in app.registered_groups)
        overrides = parse_config_overrides(["--training.max_steps", "5", "--a.b=x"])
        assert overrides == {"training.max_steps": 5, "a.b": "x"}
        with pytest.raises(NoSuchOption):
            parse_config_overrides(["--nosuch", "1"])
        assert string_to_list("tagger, ner") == ["tagger", "ner"]
        setup_gpu(-1, silent=True)


def test_spacy_init_config() -> None:
    advice = (
        "spacy_distil/cli/init_config.py takes its defaults from InitValues and Optimizations of "
        "spacy.cli.init_config, and cli/train_template.py the encoders from RECOMMENDATIONS. "
        "Write the defaults of `spacy init config` and the encoders out in our own files."
    )
    with canary(advice):
        from spacy.cli.init_config import RECOMMENDATIONS, InitValues, Optimizations

        assert (InitValues.lang, InitValues.gpu) == ("en", False)
        assert InitValues.optimize in [*Optimizations]
        assert [*InitValues.pipeline] == ["tagger", "parser", "ner"]
        for lang in ("en", "__default__"):
            assert isinstance(RECOMMENDATIONS[lang]["transformer"]["accuracy"]["name"], str)


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER])
def test_spacy_listener(bert_dir: Path, listener: dict[str, Any]) -> None:
    advice = (
        "spacy_distil/component/listener.py subclasses spaCy's Tok2VecListener, sets its "
        "_batch_id, _outputs and _backprop, and calls its `forward`; component/pipe.py calls "
        "`receive`. See spacy/pipeline/tok2vec.py for the new attributes."
    )
    nlp = make_nlp(bert_dir, ["tagger"], listener=listener)
    node = nlp.get_pipe("tagger").model.get_ref("tok2vec")
    with canary(advice):
        from spacy.pipeline.tok2vec import Tok2VecListener, forward

        docs = [example.predicted for example in make_examples(nlp, 2)]
        outputs = [np.ones((len(doc), 32), dtype="f") for doc in docs]
        node.receive(Tok2VecListener.get_batch_id(docs), outputs, list)
        assert node._batch_id == Tok2VecListener.get_batch_id(docs)
        assert (node._outputs, node._backprop) == (outputs, list)
        assert forward(node, docs, True) == (outputs, list)
        node.receive(None, None, None)
        assert (node._batch_id, node._outputs, node._backprop) == (None, None, None)


def test_spacy_transition_parser() -> None:
    advice = (
        "spacy_distil/distillation/pipeline/heads/transitions.py scores moves with spaCy's "
        "ParserStepModel, and uses parts of the pipes that spaCy does not document. See `rehearse` "
        "in spacy/pipeline/transition_parser.pyx, which does the same in spaCy."
    )
    nlp = spacy.blank("en")
    ner: Any = nlp.add_pipe("ner")
    examples = make_examples(nlp)
    nlp.initialize(lambda: examples)
    docs = [example.predicted for example in examples]
    with canary(advice):
        from spacy_distil.distillation.pipeline.heads.transitions import MoveScorer

        model = ner.model
        assert isinstance(model.attrs["unseen_classes"], set)
        scorer = MoveScorer(docs, model.layers[0], model, is_train=True)
        assert "dropout_rate" in scorer.attrs
        states = ner.moves.init_batch(docs)
        features = scorer.find_features(states)
        assert len(features) == len(docs)
        scores, backprop = scorer.begin_update(features)
        assert scores.shape == (len(docs), ner.moves.n_moves)
        backprop(np.ones_like(scores))
        scorer.finish_steps([])
        scorer.clear_memory()
        ner.transition_states(states, scores)
        state = states[0].copy()
        assert state.length == len(docs[0])
        assert (state.B(0), state.buffer_length()) == (1, len(docs[0]) - 1)
        assert not state.is_final()
        assert any(ner.moves.is_valid(state, name) for name in ner.move_names)
        assert ner.cfg["update_with_oracle_cut_size"] >= 1
        assert ner.cfg["beam_width"] == 1
        starts, golds, _ = ner._init_gold_batch(examples, max_length=3)
        assert len(starts) == len(golds) > len(docs)
        starts, golds, _ = ner.moves.init_gold_batch(examples)
        gradient = ner.get_batch_loss(starts, golds, np.zeros_like(scores), None)
        assert gradient.shape == scores.shape


# thinc


def test_thinc_optimizer() -> None:
    advice = (
        "spacy_distil/component/shim.py takes the settings of a step from thinc's Optimizer, and "
        "distillation/pipeline/checkpoint.py saves its state by (id, name) of each parameter. See "
        "thinc/optimizers.py for the new attributes."
    )
    with canary(advice):
        layer: Model[Any, Any] = Linear(2, 3)
        layer.initialize()
        optimizer = Adam(0.1, L2=0.01, beta1=0.8, beta2=0.9, eps=1e-6, grad_clip=2.0)
        assert (optimizer.learn_rate, optimizer.L2, optimizer.grad_clip) == (0.1, 0.01, 2.0)
        assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.8, 0.9, 1e-6)
        assert (optimizer.use_radam, optimizer.L2_is_weight_decay) == (False, True)
        gradient: Any = np.ones((2, 3), dtype="f")
        layer.inc_grad("W", gradient)
        layer.finish_update(optimizer)
        assert optimizer.nr_update[layer.id, "W"] == 1
        for moment in (optimizer.mom1, optimizer.mom2):
            assert moment[layer.id, "W"].size == 6
        assert hasattr(optimizer, "averages")


def test_thinc_resize_linear() -> None:
    advice = (
        "spacy_distil/ner/pipe.py adds outputs for new labels with resize_linear_weighted of "
        "thinc.layers.resizable. It is a dozen lines: copy weights and biases in our own function."
    )
    with canary(advice):
        from thinc.layers.resizable import resize_linear_weighted

        layer: Model[Any, Any] = Linear(2, 3)
        layer.initialize()
        larger = resize_linear_weighted(layer, 4, fill_defaults={"b": -10.0})
        np.testing.assert_array_equal(larger.get_param("W")[:2], layer.get_param("W"))
        np.testing.assert_array_equal(larger.get_param("b"), [0, 0, -10, -10])
