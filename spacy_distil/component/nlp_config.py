"""Complete the config and the meta of a pipeline that has an encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spacy.language import Language
from spacy.training import Example
from spacy.util import get_minor_version_range, registry
from wasabi import msg

from spacy_distil import __version__
from spacy_distil.engines.files import EngineName
from spacy_distil.runs.schedules import count_rising

# A requirement of this package, with or without extras and versions.
_REQUIREMENT = re.compile(r"spacy[-_.]distil\s*($|[\[<>=!~;,@ ])", re.IGNORECASE)
# Packages that spaCy's tokenizers of some languages import, as in the extras of spaCy.
TOKENIZERS: dict[str, tuple[str, ...]] = {
    "spacy.ja.JapaneseTokenizer": ("sudachipy>=0.5.2,!=0.6.1", "sudachidict_core>=20211220"),
    "spacy.ko.KoreanTokenizer": ("natto-py>=0.9.0",),
    "spacy.th.ThaiTokenizer": ("pythainlp>=2.0",),
    "spacy.vi.VietnameseTokenizer": ("pyvi",),
}
# The same for the setting `segmenter` of the Chinese one. By characters, it needs none.
CHINESE_SEGMENTERS: dict[str, tuple[str, ...]] = {
    "jieba": ("jieba",),
    "pkuseg": ("spacy-pkuseg>=0.0.27",),
}


def fill_in_optimizer(nlp: Language) -> None:
    """Replace the variables in a pipeline's [training.optimizer] by their values.

    spaCy resolves this block alone, without variables such as `${training.max_steps}`, in
    `nlp.resume_training` and at the end of an `nlp.initialize` without an optimizer.
    """
    training = nlp.config.get("training", {})
    if "${" in str(training.get("optimizer", "")):
        training["optimizer"] = nlp.config.interpolate()["training"]["optimizer"]


def warn_of_warmup(nlp: Language, get_examples: Callable[[], Iterable[Example]]) -> None:
    """Warn if most of a training with `spacy train` would be warm-up.

    get_examples: returns the training examples.
    """
    training: Any = nlp.config.interpolate().get("training", {})
    rates = training.get("optimizer", {}).get("learn_rate")
    # A number, or a schedule that the config cannot hold, is no plan for a warm-up.
    if not isinstance(rates, dict):
        return
    n_steps = _count_steps(training, get_examples)
    rising = count_rising(registry.resolve({"schedule": rates})["schedule"], n_steps)
    if rising <= n_steps // 2:
        return
    ends = "ends with the last step" if rising >= n_steps - 1 else f"takes {rising:,} steps"
    msg.warn(
        f"The warm-up of the learning rate {ends}, of {n_steps:,} in all: the pipes will hardly "
        f"learn. Set [training.optimizer.learn_rate] warmup_steps to {n_steps // 10:,}, or train "
        "for more steps. 'spacy distil init-config train --corpus' fits both to a corpus."
    )


def _count_steps(training: Mapping[str, Any], get_examples: Callable[[], Iterable[Example]]) -> int:
    """Count the steps of a training; 0 if only patience or the user ends it.

    training: [training], interpolated.
    """
    n_steps = max(0, training.get("max_steps") or 0)
    epochs = training.get("max_epochs") or 0
    if epochs > 0:
        batcher = registry.resolve({"batcher": training["batcher"]})["batcher"]
        by_epochs = epochs * sum(1 for _ in batcher(get_examples()))
        n_steps = min(n_steps or by_epochs, by_epochs)
    return n_steps


def set_requirements(meta: dict[str, Any], engine: EngineName, config: Mapping[str, Any]) -> None:
    """Write into a pipeline's meta what its encoder and its tokenizer need.

    `spacy package` finds out that a pipeline needs spacy-distil, but not which extra, nor which
    packages spaCy's tokenizers of some languages import. A requirement of such a package that the
    meta has stays as it is.

    config: of the pipeline.
    """
    extra = "[train]" if engine == "torch" else ""
    others = [req for req in meta.get("requirements", []) if not _REQUIREMENT.match(req)]
    named = {_name(req) for req in others}
    needed = [req for req in _tokenizer_packages(config["nlp"]) if _name(req) not in named]
    own = f"spacy-distil{extra}{get_minor_version_range(__version__)}"
    meta["requirements"] = [*others, *needed, own]


def _tokenizer_packages(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages that the tokenizer of an [nlp] section imports."""
    tokenizer = settings.get("tokenizer", {})
    match tokenizer.get("@tokenizers"):
        case "spacy.zh.ChineseTokenizer":
            return CHINESE_SEGMENTERS.get(str(tokenizer.get("segmenter")), ())
        case "spacy.vi.VietnameseTokenizer" if not tokenizer.get("use_pyvi", True):
            return ()
        case name:
            return TOKENIZERS.get(str(name), ())


def _name(requirement: str) -> str:
    """Return the normalized name of the package in a requirement."""
    name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()
