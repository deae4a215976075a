"""An encoder that is made for another language is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
import transformers
from spacy.training import Example
from tokenizers import Tokenizer, models, pre_tokenizers

from spacy_distil.encoding.language import describe_foreign
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.text.languages import stop_words

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def english_tokenizer() -> Tokenizer:
    """A tokenizer that knows English stop words, letters, and other pieces."""
    letters = [*map(chr, range(97, 123)), *(f"##{chr(i)}" for i in range(97, 123))]
    others = [f"##x{i}" for i in range(2000)]
    pieces = [*SPECIAL.values(), *sorted(stop_words("en")), *letters, *others]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def test_a_tokenizer_is_described() -> None:
    tokenizer = PieceTokenizer(english_tokenizer())
    message = describe_foreign(tokenizer, "some-encoder", "de")
    assert message is not None
    assert "some-encoder seems to be made for English" in message
    assert "German (lang = 'de')" in message
    assert describe_foreign(tokenizer, "some-encoder", "en") is None
    assert describe_foreign(tokenizer, "some-encoder", "xx") is None


@pytest.mark.parametrize("lang", ["de", "en"])
def test_a_pipeline_warns_when_it_is_initialized(
    lang: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So `spacy train` and `spacy distil pipeline` do."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=english_tokenizer(), **SPECIAL
    )
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    nlp: Any = spacy.blank(lang)
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(tmp_path)}
    nlp.add_pipe("distil_transformer", config={"model": model})
    nlp.initialize(lambda: [Example.from_dict(nlp.make_doc("a"), {})])
    output = " ".join(capsys.readouterr().out.split())
    assert ("seems to be made for English" in output) is (lang == "de")
