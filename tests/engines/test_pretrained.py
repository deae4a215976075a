from __future__ import annotations

import json
import shutil
import socket
from ast import literal_eval
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spacy_distil.engines.pretrained import load_encoder, load_fast_tokenizer, load_tokenizer
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.students.teachers import load_teacher
from tests.commands import run_process
from tests.util import SENTENCES, build_tokenizer, same, special_pieces


@pytest.fixture
def broken_dir(bert_dir: Path, tmp_path: Path) -> Path:
    """Copy an encoder, for tests that break it."""
    return Path(shutil.copytree(bert_dir, tmp_path / "broken"))


def test_an_encoder_is_loaded_in_float32_without_pooler(encoder_dir: Path) -> None:
    model = load_encoder(str(encoder_dir))
    assert not any("pooler" in name for name in model.state_dict())
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    saved = load_file(encoder_dir / "model.safetensors")
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert same(ours, {name: saved[name].numpy() for name in ours}, atol=0)


def test_half_precision_files_are_loaded_in_float32(broken_dir: Path) -> None:
    transformers.AutoModel.from_pretrained(broken_dir).to(torch.bfloat16).save_pretrained(
        broken_dir
    )
    assert {p.dtype for p in load_encoder(str(broken_dir)).parameters()} == {torch.float32}


def test_heads_of_a_checkpoint_are_left_out(bert_dir: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(bert_dir)
    whole = transformers.AutoModelForMaskedLM.from_config(config)
    whole.save_pretrained(tmp_path)
    ours = {k: v.numpy() for k, v in load_encoder(str(tmp_path)).state_dict().items()}
    saved = {k: v.numpy() for k, v in whole.bert.state_dict().items()}
    assert same(ours, {name: saved[name] for name in ours}, atol=0)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    name = str(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"No encoder could be loaded from name = .*nowhere"):
        load_encoder(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_an_error(broken_dir: Path, name: str) -> None:
    (broken_dir / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load_encoder(str(broken_dir))


def test_truncated_weights_are_an_error(broken_dir: Path) -> None:
    path = broken_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="No encoder could be loaded from name"):
        load_encoder(str(broken_dir))


def test_a_missing_weight_is_not_made_up(broken_dir: Path) -> None:
    path = broken_dir / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"encoder\.layer\.1\.output\.dense\.weight is missing"):
        load_encoder(str(broken_dir))


def test_weights_of_another_shape_are_refused(broken_dir: Path) -> None:
    path = broken_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 65}))
    with pytest.raises(WeightsError, match=r"dense\.weight has .*shape.*, expected \(65, 32\)"):
        load_encoder(str(broken_dir))


def test_an_unknown_model_type_is_an_error(broken_dir: Path) -> None:
    path = broken_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "nobody"}))
    with pytest.raises(WeightsError, match="nobody"):
        load_encoder(str(broken_dir))


def test_a_pickle_is_not_read(bert_dir: Path, broken_dir: Path) -> None:
    weights = load_file(broken_dir / "model.safetensors")
    (broken_dir / "model.safetensors").unlink()
    torch.save(weights, broken_dir / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin\) are never read.*convert them"):
        load_encoder(str(broken_dir))


def test_code_of_a_model_is_not_run(broken_dir: Path) -> None:
    path = broken_dir / "config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    path.write_text(json.dumps(config))
    witness = broken_dir / "witness"
    (broken_dir / "own.py").write_text(f"open({str(witness)!r}, 'w')\n")
    with pytest.raises(WeightsError):
        load_encoder(str(broken_dir))
    assert not witness.exists()


def test_a_missing_tokenizer_is_an_error(encoder_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(encoder_dir / name, tmp_path)
    with pytest.raises(
        WeightsError, match=f"No tokenizer could be loaded from name = '{tmp_path}'"
    ):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_of_an_unknown_class_is_read_from_its_file(broken_dir: Path) -> None:
    """transformers 5 saves names of classes that version 4 does not know."""
    path = broken_dir / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "Newer"}))
    text = "Ann visited Zürich"
    ids = load_tokenizer(str(broken_dir))([text])[0].ids.tolist()
    assert ids == build_tokenizer("bert").encode(text, add_special_tokens=False).ids


# The tokenizer class that the released models of a family name.
CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
    "albert": "AlbertTokenizer",
    "electra": "ElectraTokenizer",
    "mpnet": "MPNetTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "modernbert": "PreTrainedTokenizerFast",
}


@pytest.mark.parametrize("is_released", [False, True])
def test_the_tokenizer_is_the_saved_one(
    encoder_dir: Path, tmp_path: Path, is_released: bool
) -> None:
    """Even if transformers has a class for the family that makes its own tokenizer."""
    family = encoder_dir.name
    directory = Path(shutil.copytree(encoder_dir, tmp_path / family))
    if is_released:
        settings = {"tokenizer_class": CLASSES[family], **special_pieces(family)}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = [*SENTENCES, "ﬁne  ½\n①\u3000İ", "a\u0323\u0307 \u00a0x"]
    loaded, saved = load_tokenizer(str(directory)), build_tokenizer(family)
    for text, pieces in zip(texts, loaded(texts), strict=True):
        assert pieces.ids.tolist() == saved.encode(text, add_special_tokens=False).ids
    assert [*loaded.prefix, *loaded.suffix] == saved.encode("").ids


def test_a_tokenizer_that_is_not_fast_is_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"name = '.*' has no fast tokenizer \(tokenizer\.json\)"):
        load_tokenizer(str(tmp_path))


def test_what_reads_sentencepiece_is_named(encoder_dirs: dict[str, Path], tmp_path: Path) -> None:
    """DeBERTa's released models have no tokenizer.json."""
    shutil.copy(encoder_dirs["deberta-v2"] / "config.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer"}')
    (tmp_path / "spm.model").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"(?s)name = '.*pip install sentencepiece protobuf"):
        load_tokenizer(str(tmp_path))


def test_modernbert_neither_compiles_itself_nor_takes_flash_attention(
    encoder_dirs: dict[str, Path],
) -> None:
    model = load_encoder(str(encoder_dirs["modernbert"]))
    assert model.config._attn_implementation == "sdpa"
    # transformers 5 compiles nothing.
    assert not getattr(model.config, "reference_compile", False)


def test_a_directory_is_loaded_without_the_network(
    bert_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_encoder(str(bert_dir))
    load_tokenizer(str(bert_dir))


def test_a_tokenizer_without_its_config_is_what_its_file_says(
    broken_dir: Path,
) -> None:
    """A component's own files are such a directory. The class of BERT's family would lower-case."""
    path = broken_dir / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf8"))
    settings["normalizer"] = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": False,
        "lowercase": False,
    }
    path.write_text(json.dumps(settings), encoding="utf8")
    (broken_dir / "tokenizer_config.json").unlink(missing_ok=True)
    tokenizer = load_fast_tokenizer(str(broken_dir), setting="name")
    assert tokenizer.backend_tokenizer.normalizer.normalize_str("ÀB") == "ÀB"
    assert tokenizer.cls_token_id == settings["model"]["vocab"]["[CLS]"]
    saved = json.loads(load_tokenizer(str(broken_dir)).to_str())
    assert saved["normalizer"] == settings["normalizer"]


# Codes of the hub, by a part of the name.
HUB = {"typo": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "private": (401, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """A hub that has no model which one may read."""

    def do_HEAD(self) -> None:
        status, code = next(answer for part, answer in HUB.items() if part in self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *arguments: Any) -> None:
        """Write nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables of a process that asks it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
    server.shutdown()
    server.server_close()


LOAD_ALL = """
import sys
from spacy_distil.engines.pretrained import load_encoder, load_tokenizer
from spacy_distil.errors import WeightsError
from spacy_distil.students.teachers import load_teacher
for name in sys.argv[1:]:
    for load in (load_encoder, load_tokenizer, load_teacher):
        try:
            load(name)
        except WeightsError as error:
            print(repr(str(error)))
"""


@pytest.mark.slow
def test_a_hub_name_that_cannot_be_had_is_one_sentence(hub: dict[str, str]) -> None:
    said = run_process("-c", LOAD_ALL, "me/typo", "me/gated", "me/private", **hub).splitlines()
    reasons = ("nor a model on the Hugging Face hub.", "it is gated", "if the model is private")
    for reason, name, messages in zip(
        reasons, ("typo", "gated", "private"), (said[:3], said[3:6], said[6:]), strict=True
    ):
        for start, message in zip(
            (
                "No encoder could be loaded from name",
                "No tokenizer could be loaded from name",
                "teacher.name",
            ),
            map(literal_eval, messages),
            strict=True,
        ):
            assert message.startswith(f"{start} = 'me/{name}'")
            assert reason in message
            assert "\n" not in message


@pytest.mark.parametrize("name", ["me/nothing", "no/such/path", "./here", "nothing"])
def test_offline_a_name_without_a_directory_is_one_sentence(
    name: str,
) -> None:
    for load in (load_encoder, load_tokenizer, load_teacher):
        with pytest.raises(WeightsError) as error:
            load(name)
        assert f"'{name}'" in str(error.value)
        assert "it is neither a directory here nor a model " in str(error.value)
        assert "\n" not in str(error.value)
