from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from spacy.tokens import Doc
from thinc.api import NumpyOps
from tokenizers import Tokenizer

from spacy_distil.encoding import Batch, PieceTokenizer, make_batches
from spacy_distil.encoding.windows import split_windows
from spacy_distil.engines import StepSettings, TrainableEngine
from spacy_distil.engines.files import write_files
from spacy_distil.engines.optimizer import EncoderOptimizer
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.engines.torch import TorchEngine, choose_device
from spacy_distil.errors import ConfigError, WeightsError
from tests.encoding.test_pieces import naive_offsets
from tests.util import LAYERS, SENTENCES, WIDTH, copied, make_nlp, same, torch_model_of

OPS = NumpyOps()
STEP = StepSettings(
    learn_rate=1e-2,
    layer_decay=1.0,
    beta1=0.9,
    beta2=0.99,
    eps=1e-8,
    weight_decay=0.1,
    grad_clip=0.0,
)


def read(directory: Path) -> tuple[TorchEngine, PieceTokenizer, Any]:
    """Load our engine and tokenizer, and the model of transformers."""
    engine = TorchEngine.from_name(str(directory), device="cpu")
    tokenizer = PieceTokenizer.from_str((directory / "tokenizer.json").read_bytes())
    return engine, tokenizer, transformers.AutoModel.from_pretrained(directory).eval()


def batches_of(
    tokenizer: PieceTokenizer, texts: tuple[str, ...], budget: int = 10_000
) -> Iterator[Batch]:
    return make_batches(
        [pieces.ids for pieces in tokenizer(texts)],
        prefix=tokenizer.prefix,
        suffix=tokenizer.suffix,
        pad_id=0,
        max_batch_pieces=budget,
    )


def rows_of(engine: TorchEngine, tokenizer: PieceTokenizer, budget: int) -> np.ndarray:
    n_rows = sum(len(pieces.ids) for pieces in tokenizer(SENTENCES))
    rows = np.full((n_rows, WIDTH), np.nan, dtype="f")
    for batch in batches_of(tokenizer, SENTENCES, budget):
        rows[batch.rows] = engine.predict(batch, OPS)
    return rows


@pytest.mark.parametrize("budget", [1, 10_000])
def test_hidden_states_are_those_of_transformers(encoder_dir: Path, budget: int) -> None:
    engine, tokenizer, reference = read(encoder_dir)
    raw = Tokenizer.from_file(str(encoder_dir / "tokenizer.json"))
    expected = []
    with torch.no_grad():
        for text in SENTENCES:  # one by one: no padding
            ids = torch.tensor([raw.encode(text).ids])
            expected.append(reference(input_ids=ids).last_hidden_state[0, 1:-1].numpy())
    rows = rows_of(engine, tokenizer, budget)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, np.concatenate(expected), rtol=0, atol=1e-5)


def test_hidden_states_of_the_teacher(teacher_dir: Path) -> None:
    """Compare with the inputs of its own tokenizer, token types included."""
    engine = TorchEngine.from_name(str(teacher_dir), device="cpu")
    tokenizer = PieceTokenizer.from_str((teacher_dir / "tokenizer.json").read_bytes())
    reference = transformers.AutoModel.from_pretrained(teacher_dir).eval()
    printed = transformers.AutoTokenizer.from_pretrained(teacher_dir)(
        list(SENTENCES), padding=True, return_tensors="pt"
    )
    assert "token_type_ids" in printed
    with torch.no_grad():
        hidden = reference(**printed).last_hidden_state.numpy()
    expected = [
        states[1 : int(mask.sum()) - 1]
        for states, mask in zip(hidden, printed["attention_mask"], strict=True)
    ]
    n_rows = sum(map(len, expected))
    rows = np.zeros((n_rows, 384), dtype="f")
    for batch in batches_of(tokenizer, SENTENCES):
        rows[batch.rows] = engine.predict(batch, OPS)
    np.testing.assert_allclose(rows, np.concatenate(expected), rtol=0, atol=1e-5)


# Layers


def test_layers_are_those_of_transformers(encoder_dir: Path) -> None:
    check_layers(encoder_dir, (0, 1, 2), 150)


@pytest.mark.parametrize("layers", [(0, 1, 2), (2,), (1, 2, 1), (0,)])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_layers_are_those_that_were_asked_for(
    bert_dir: Path, layers: tuple[int, ...], budget: int
) -> None:
    check_layers(bert_dir, layers, budget)


def check_layers(encoder_dir: Path, layers: tuple[int, ...], budget: int) -> None:
    """Check that values and gradients are the same side by side."""
    engine, tokenizer, _ = read(encoder_dir)
    assert engine.n_layers == LAYERS
    reference = transformers.AutoModel.from_pretrained(encoder_dir).train()
    raw = Tokenizer.from_file(str(encoder_dir / "tokenizer.json"))
    wanted = []
    for text in SENTENCES:  # one by one: no padding
        output = reference(
            input_ids=torch.tensor([raw.encode(text).ids]), output_hidden_states=True
        )
        # ModernBERT norms the output of its last layer once more.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        assert len(states) == LAYERS + 1
        wanted.append(torch.cat([states[i][0, 1:-1] for i in layers], dim=1))
    expected = torch.cat(wanted)
    loss_weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * loss_weights).sum().backward()

    rows = np.full(expected.shape, np.nan, dtype="f")
    for batch in batches_of(tokenizer, SENTENCES, budget):
        rows[batch.rows] = engine.predict(batch, OPS, layers)
        in_training: Any
        in_training, backprop = engine.begin_update(batch, OPS, layers)
        np.testing.assert_allclose(in_training, rows[batch.rows], rtol=0, atol=1e-5)
        d_rows: Any = loss_weights[batch.rows].numpy()
        backprop(d_rows)
    np.testing.assert_allclose(rows, expected.detach(), rtol=0, atol=1e-5)
    learned = {n: p.grad for n, p in engine.model.named_parameters() if p.grad is not None}
    gradients = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    assert learned.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        np.testing.assert_allclose(learned[name] / scale, gradient / scale, rtol=0, atol=2e-5)


def test_the_last_layer_is_the_last_hidden_state() -> None:
    """Even in a family with a norm after its last layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.ModernBertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            attn_implementation="sdpa",
            reference_compile=False,
            **{f"{which}_token_id": 0 for which in ("pad", "bos", "eos", "cls", "sep")},
        )
        engine = TorchEngine(transformers.AutoModel.from_config(config), device="cpu")
    (batch,) = make_batches(
        [np.arange(1, 9), np.arange(10, 15)], prefix=[0], suffix=[0], pad_id=0, max_batch_pieces=99
    )
    expected: Any = engine.predict(batch, OPS)
    found: Any = engine.predict(batch, OPS, (1, 2))
    np.testing.assert_array_equal(found[:, 32:], expected)


@pytest.mark.parametrize("layers", [(), (3,), (0, -1)])
def test_layers_that_are_not_there_are_named(bert_dir: Path, layers: tuple[int, ...]) -> None:
    engine, tokenizer, _ = read(bert_dir)
    (batch,) = batches_of(tokenizer, SENTENCES)
    message = rf"layers = {re.escape(str(list(layers)))}: .* from 0 \(.*\) to 2 \("
    with pytest.raises(ConfigError, match=message):
        engine.predict(batch, OPS, layers)
    with pytest.raises(ConfigError, match=message):
        engine.begin_update(batch, OPS, layers)
    assert not engine.model.training


# Gradients


def naive_token_vectors(
    model: Any, family: str, raw: Tokenizer, docs: list[Doc], capacity: int, overlap: int
) -> torch.Tensor:
    """Compute token vectors of all docs in one padded batch, token by token, piece by piece."""
    rows, owners = [], []
    owned: list[list[list[int]]] = []  # pieces of each token of each doc
    for d, doc in enumerate(docs):
        encoding = raw.encode(doc.text, add_special_tokens=False)
        owned.append(
            [
                [
                    i
                    for i, (start, end) in enumerate(naive_offsets(family, doc.text))
                    if max(start, token.idx) < min(end, token.idx + len(token))
                ]
                for token in doc
            ]
        )
        spans = [pieces or [0, -1] for pieces in owned[d]]
        bounds = np.array([(pieces[0], pieces[-1] + 1) for pieces in spans]).reshape(-1, 2)
        for start, end in split_windows(
            len(encoding.ids), bounds[:, 0], bounds[:, 1], capacity=capacity, overlap=overlap
        ):
            rows.append([1, *encoding.ids[start:end], 2])
            owners.append((d, start))
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    vectors = []
    for d, pieces_by_token in enumerate(owned):
        for pieces in pieces_by_token:
            means = []
            for piece in pieces:
                seen = [
                    hidden[w, 1 + piece - start]
                    for w, (of, start) in enumerate(owners)
                    if of == d and start <= piece < start + len(rows[w]) - 2
                ]
                means.append(torch.stack(seen).mean(0))
            vectors.append(torch.stack(means).mean(0) if means else torch.zeros(WIDTH))
    return torch.stack(vectors)


@pytest.mark.parametrize(("window", "overlap", "budget"), [(64, 0, 10_000), (18, 5, 40)])
def test_gradients_are_those_of_autograd(
    encoder_dir: Path, window: int, overlap: int, budget: int
) -> None:
    """From docs to the gradients of the weights, for a random linear loss of the token vectors."""
    nlp = make_nlp(encoder_dir, window=window, overlap=overlap, max_batch_pieces=budget)
    model = torch_model_of(nlp)
    raw = Tokenizer.from_file(str(encoder_dir / "tokenizer.json"))
    words = ["un", "believ", "able", "  ", "Zürich"]
    docs = [
        *(nlp.make_doc(text) for text in SENTENCES[:3]),
        nlp.make_doc(""),
        nlp.make_doc("a   b"),
        Doc(nlp.vocab, words=words, spaces=[False, False, True, False, False]),
    ]
    loss_weights = torch.randn(
        sum(map(len, docs)), WIDTH, generator=torch.Generator().manual_seed(1)
    )

    tokvecs, backprop = nlp.get_pipe("transformer").model.begin_update(docs)
    bounds = np.cumsum([len(doc) for doc in docs])[:-1]
    backprop(np.split(loss_weights.numpy(), bounds))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    reference = transformers.AutoModel.from_pretrained(encoder_dir).train()
    reference_model = _with_special_ids(reference, raw)
    expected = naive_token_vectors(
        reference_model, encoder_dir.name, raw, docs, window - 2, overlap
    )
    np.testing.assert_allclose(np.concatenate(tokvecs), expected.detach(), rtol=0, atol=1e-5)
    (expected * loss_weights).sum().backward()
    wanted = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    # All weights learn.
    assert len(found) == len(list(model.named_parameters()))
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        np.testing.assert_allclose(found[name] / scale, gradient / scale, rtol=0, atol=2e-5)


def _with_special_ids(model: Any, raw: Tokenizer) -> Any:
    """Replace the 1 and 2 that the naive implementation puts around a window by the tokenizer's
    pieces.
    """
    prefix, suffix = raw.encode("").ids

    def call(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        ids = input_ids.clone()
        ids[:, 0] = prefix
        ends = attention_mask.sum(1) - 1
        ids[torch.arange(len(ids)), ends] = suffix
        return model(input_ids=ids, attention_mask=attention_mask)

    return call


def test_gradients_add_up_until_a_step(bert_dir: Path) -> None:
    engine, tokenizer, _ = read(bert_dir)
    (batch,) = batches_of(tokenizer, SENTENCES)
    rows, backprop = engine.begin_update(batch, OPS)
    backprop(rows)
    once = {name: p.grad.clone() for name, p in engine.model.named_parameters()}
    rows, backprop = engine.begin_update(batch, OPS)
    backprop(rows)
    for name, parameter in engine.model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=1e-4, atol=1e-4)
    engine.step(STEP)
    assert all(parameter.grad is None for parameter in engine.model.parameters())


# Steps


def layer_of(name: str) -> int:
    """Return the number of a weight's layer, -1 for embeddings. Weights that all layers share, such
    as all of ALBERT's, count as the uppermost.
    """
    parts = name.split(".")
    for layer in ("layer", "layers"):
        if layer in parts:
            return int(parts[parts.index(layer) + 1])
    below = ("embeddings.", "embeddings_project.", "encoder.embedding_hidden_mapping_in.")
    return -1 if name.startswith(below) else LAYERS - 1


def test_a_step_is_one_of_adamw(encoder_dir: Path) -> None:
    check_steps(encoder_dir, layer_decay=0.5, grad_clip=0.3)


@pytest.mark.parametrize(("layer_decay", "grad_clip"), [(1.0, 0.0), (1.0, 0.3), (0.5, 0.0)])
def test_a_step_is_as_it_is_set(bert_dir: Path, layer_decay: float, grad_clip: float) -> None:
    check_steps(bert_dir, layer_decay=layer_decay, grad_clip=grad_clip)


@pytest.mark.parametrize("depths", [[0], [2, 0], [2, 1, 0], [3, 2, 1, 0]])
def test_depths_of_layers_that_share_weights(depths: list[int]) -> None:
    """A group is as deep as its uppermost layer. Three groups have 2, 1 and 1 of the layers."""
    config = transformers.AlbertConfig(
        vocab_size=9,
        embedding_size=4,
        hidden_size=8,
        num_hidden_layers=4,
        num_hidden_groups=len(depths),
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = transformers.AlbertModel(config, add_pooling_layer=False)
    optimizer = EncoderOptimizer(model, torch.device("cpu"), scale_loss=False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer._make_adamw().param_groups:
        for parameter in group["params"]:
            number = re.search(r"groups\.(\d)", names[parameter])
            assert group["depth"] == (depths[int(number[1])] if number else 4)


def check_steps(encoder_dir: Path, *, layer_decay: float, grad_clip: float) -> None:
    engine, tokenizer, _ = read(encoder_dir)
    reference = transformers.AutoModel.from_pretrained(encoder_dir)
    by_name = dict(reference.named_parameters())
    rng = np.random.default_rng(0)
    optimizer: torch.optim.Optimizer | None = None
    for step in range(3):
        settings = StepSettings(
            learn_rate=1e-2 / (step + 1),
            layer_decay=layer_decay,
            beta1=0.9,
            beta2=0.99,
            eps=1e-6,
            weight_decay=0.1,
            grad_clip=grad_clip,
        )
        (batch,) = batches_of(tokenizer, SENTENCES)
        _, backprop = engine.begin_update(batch, OPS)
        d_rows: Any = rng.normal(size=(len(batch.rows), WIDTH)).astype("f")
        backprop(d_rows)
        gradients = {name: p.grad.clone() for name, p in engine.model.named_parameters()}
        engine.step(settings)

        norm = np.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
        assert norm > 0.3
        factor = min(1.0, grad_clip / norm) if grad_clip else 1.0
        groups = []
        for name, gradient in gradients.items():
            by_name[name].grad = gradient * factor
            below_top = LAYERS - 1 - layer_of(name)
            exempt = name.endswith("bias") or "norm" in name.lower()
            groups.append(
                {
                    "params": [by_name[name]],
                    "lr": settings.learn_rate * layer_decay**below_top,
                    "weight_decay": 0.0 if exempt else settings.weight_decay,
                }
            )
        if optimizer is None:
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-6, foreach=False)
        for group, wanted in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = wanted["lr"]
        optimizer.step()
    learned = copied(engine.model)
    assert same(learned, {name: copied(reference)[name] for name in learned})


def test_a_weight_without_gradient_does_not_decay(bert_dir: Path) -> None:
    """An empty batch changes nothing."""
    engine, _, _ = read(bert_dir)
    before = copied(engine.model)
    engine.step(STEP)
    assert same(before, copied(engine.model), atol=0)


def test_dropout_is_on_in_updates_alone(dropout_dir: Path) -> None:
    engine, tokenizer, _ = read(dropout_dir)
    (batch,) = batches_of(tokenizer, SENTENCES)
    first: Any
    second: Any
    first, _ = engine.begin_update(batch, OPS)
    second, _ = engine.begin_update(batch, OPS)
    assert np.abs(first - second).max() > 0.1
    assert not engine.model.training
    np.testing.assert_array_equal(engine.predict(batch, OPS), engine.predict(batch, OPS))


def test_attention_dropout_is_a_setting(encoder_dir: Path) -> None:
    """It changes the dropout of attention probabilities. The dropout of hidden states is 0 here."""
    engine, tokenizer, _ = read(encoder_dir)
    settings: Any = {"device": "cpu", "attention_dropout": 0.25}
    (batch,) = batches_of(tokenizer, SENTENCES)
    for dropping in (
        TorchEngine.from_name(str(encoder_dir), **settings),
        TorchEngine.from_files(engine.to_files(), **settings),
    ):
        rates = {m.p for m in dropping.model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {0.0, 0.25}
        rows: Any = dropping.begin_update(batch, OPS)[0]
        expected: Any = engine.predict(batch, OPS)
        assert np.abs(rows - expected).max() > 0.01
        np.testing.assert_array_equal(dropping.predict(batch, OPS), expected)


def test_mixed_precision_on_a_cpu_is_for_training_alone(bert_dir: Path) -> None:
    engine, tokenizer, _ = read(bert_dir)
    mixed = TorchEngine.from_name(str(bert_dir), device="cpu", mixed_precision=True)
    (batch,) = batches_of(tokenizer, SENTENCES)
    expected: Any = engine.predict(batch, OPS)
    np.testing.assert_array_equal(mixed.predict(batch, OPS), expected)
    rows: Any
    rows, backprop = mixed.begin_update(batch, OPS)
    assert rows.dtype == np.float32
    assert bool(np.abs(rows - expected).max() > 1e-4) == has_native_bf16(mixed.device)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=0.2)
    backprop(rows)
    mixed.step(STEP)
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}


# Files


def test_files_round_trip(encoder_dir: Path) -> None:
    engine, tokenizer, _ = read(encoder_dir)
    files = engine.to_files()
    assert files.keys() == {"config.json", "model.safetensors"}
    again = TorchEngine.from_files(files, device="cpu")
    np.testing.assert_array_equal(rows_of(again, tokenizer, 500), rows_of(engine, tokenizer, 500))
    assert (
        again.n_parameters
        == engine.n_parameters
        == sum(w.size for w in copied(engine.model).values())
    )
    assert again.to_files() == files
    assert again.width == WIDTH
    assert isinstance(again, TrainableEngine)


def test_saved_files_load_with_transformers(encoder_dir: Path, tmp_path: Path) -> None:
    engine, _, _ = read(encoder_dir)
    write_files(tmp_path, engine.to_files())
    model, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all("pooler" in name for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    ours = copied(engine.model)
    assert same(ours, {name: copied(model)[name] for name in ours}, atol=0)


def _change_config(**changes: Any) -> Any:
    def change(files: dict[str, bytes]) -> None:
        config = {**json.loads(files["config.json"]), **changes}
        files["config.json"] = json.dumps(
            {k: v for k, v in config.items() if v is not None}
        ).encode()

    return change


def _change_weights(add: tuple[str, ...] = (), drop: str = "") -> Any:
    def change(files: dict[str, bytes]) -> None:
        from safetensors.torch import load, save

        weights = load(files["model.safetensors"])
        weights.pop(drop, None)
        files["model.safetensors"] = save({**weights, **{name: torch.ones(2) for name in add}})

    return change


def _truncate(name: str) -> Any:
    def change(files: dict[str, bytes]) -> None:
        files[name] = files[name][: len(files[name]) // 2]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate("config.json"), r"config\.json is not valid JSON"),
        (_truncate("model.safetensors"), r"model\.safetensors \([\d,]+ bytes\) cannot be read"),
        (_change_config(model_type=None), r'config\.json names no "model_type"'),
        (
            _change_config(model_type="nobody"),
            r"model_type 'nobody', which transformers [\d.]+ does",
        ),
        (_change_config(hidden_size=33), r"config\.json describes no encoder"),
        (_change_config(intermediate_size=65), r"has shape \(64, 32\), expected \(65, 32\)"),
        (_change_config(num_hidden_layers=3), r"encoder\.layer\.2\..* is missing.* and 11 more"),
        (_change_config(num_hidden_layers=1), r"encoder\.layer\.1\..* is not part of the encoder"),
        (
            _change_weights(drop="embeddings.word_embeddings.weight"),
            r"embeddings\.word_embeddings\.weight is missing\.",
        ),
        (_change_weights(add=("cls.bias",)), r"cls\.bias is not part of the encoder\."),
    ],
)
def test_broken_files_are_named(bert_dir: Path, change: Any, message: str) -> None:
    files = read(bert_dir)[0].to_files()
    change(files)
    with pytest.raises(WeightsError, match=message):
        TorchEngine.from_files(files, device="cpu")


def test_weights_are_not_initialized_first(
    encoder_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from a pipeline's files nor from a model's directory."""
    files = read(encoder_dir)[0].to_files()
    for name in ("normal_", "uniform_", "random_", "bernoulli_", "erfinv_"):
        original = getattr(torch.Tensor, name)

        def refuse(
            tensor: torch.Tensor, *args: Any, _original: Any = original, **kwargs: Any
        ) -> Any:
            if not tensor.is_meta:
                raise AssertionError("a random weight")
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, refuse)
    with pytest.raises(AssertionError, match="a random weight"):
        transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(encoder_dir))
    TorchEngine.from_files(files, device="cpu")
    TorchEngine.from_name(str(encoder_dir), device="cpu")


# Devices


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"])
def test_an_unknown_device_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device = '{device}' cannot be used"):
        choose_device(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_auto_takes_the_gpu_without_cupy(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, device="auto")
    assert torch_model_of(nlp).device.type == "cuda"
    cpu = make_nlp(bert_dir, device="cpu")
    np.testing.assert_allclose(nlp(SENTENCES[0]).tensor, cpu(SENTENCES[0]).tensor, atol=1e-4)


def test_the_ops_array_is_numpy(bert_dir: Path) -> None:
    assert spacy.util.get_current_ops().device_type == "cpu"
    engine, tokenizer, _ = read(bert_dir)
    (batch,) = batches_of(tokenizer, ("Ann",))
    assert type(engine.predict(batch, OPS)) is np.ndarray
