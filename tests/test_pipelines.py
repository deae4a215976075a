"""Saved pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from thinc.api import Config

from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import import_code, load_pipeline, read_config
from tests.own_code import make_own


def one_sentence(message: str, *parts: str) -> bool:
    return "\n" not in message and all(part in message for part in parts)


def test_own_code_is_missed_and_found(tmp_path: Path) -> None:
    """First the component is unknown, then the architecture of the tagger."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger").add_label("X")
    nlp.initialize()
    nlp.to_disk(tmp_path / "own")
    code = make_own(tmp_path / "own")
    with pytest.raises(ConfigError) as error:
        load_pipeline(tmp_path / "own")
    name = code.read_text().split('"')[1]
    assert one_sentence(
        str(error.value), f"needs the registered function '{name}.Tagger.v1'", "--code"
    )
    config = Config().from_disk(tmp_path / "own" / "config.cfg", interpolate=False)
    config["components"]["tagger"]["model"]["@architectures"] = "spacy.Tagger.v2"
    config.to_disk(tmp_path / "own" / "config.cfg")
    with pytest.raises(ConfigError) as error:
        load_pipeline(tmp_path / "own")
    assert one_sentence(str(error.value), f"needs the factory '{name}'", "--code")
    import_code(code)
    import_code(code)  # again does no harm
    assert load_pipeline(tmp_path / "own")("Ann met Bob.").user_data["capitals"] == 2


@pytest.mark.parametrize("architecture", ["spacy-curated-transformers.RobertaTransformer.v1", ""])
def test_the_package_of_a_plugin_is_named(tmp_path: Path, architecture: str) -> None:
    spacy.blank("en").to_disk(tmp_path)
    config = Config().from_disk(tmp_path / "config.cfg", interpolate=False)
    config["nlp"]["pipeline"] = ["transformer"]
    config["components"]["transformer"] = {"factory": "factory_of_no_package"}
    if architecture:
        config["components"]["transformer"]["model"] = {"@architectures": architecture}
    config.to_disk(tmp_path / "config.cfg")
    with pytest.raises(ConfigError) as error:
        load_pipeline(tmp_path)
    install = "pip install spacy-curated-transformers"
    assert one_sentence(str(error.value), install if architecture else "--code")
    assert (install in str(error.value)) == bool(architecture)


def test_damaged_pipelines_are_named_in_one_sentence(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path)
    for damage in (
        lambda: (tmp_path / "vocab" / "strings.json").write_text("["),
        lambda: (tmp_path / "config.cfg").write_text("[nlp\n"),
        lambda: (tmp_path / "config.cfg").unlink(),
    ):
        damage()
        with pytest.raises(ConfigError) as error:
            load_pipeline(tmp_path)
        assert one_sentence(str(error.value), f"{tmp_path} cannot be loaded: ")
    with pytest.raises(ConfigError, match=r"config\.cfg cannot be read: .*"):
        read_config(str(tmp_path))


def test_code_that_cannot_be_imported(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    with pytest.raises(ConfigError, match=r"No code at .*code\.py: expected a Python file"):
        import_code(code)
    for text, said in (
        ("x = 1\ny = z\n", r"code\.py, line 2: .*NameError: name 'z' is not defined"),
        ("def f(:\n", r"code\.py: .*SyntaxError: .*line 1"),
    ):
        code.write_text(text)
        with pytest.raises(ConfigError, match=said):
            import_code(code)
