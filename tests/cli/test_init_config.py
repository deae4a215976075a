"""`spacy distil init-config` as users call it."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import spacy
import typer
from spacy.cli._util import app
from spacy.cli.debug_config import debug_config
from spacy.tokens import Doc, DocBin
from spacy.util import load_config, load_config_from_str, load_model_from_config
from thinc.api import Config
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner, Result

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.cli.configs import (
    PIPES,
    RIVALS,
    encoder_config,
    pipeline_config,
    training_config,
)
from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.errors import ConfigError
from spacy_distil.text.languages import stop_words
from tests.test_light_import import run_python

ROOT = Path(__file__).resolve().parents[2]
# Two pipelines that have all pipes between them.
PIPELINES = [[pipe for pipe in PIPES if pipe not in {pair[i] for pair in RIVALS}] for i in range(2)]


def init_config(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["distil", "init-config", *map(str, arguments)])


def written(*arguments: str) -> tuple[Config, str]:
    """The config that the command prints, parsed and as text."""
    result = init_config("train", "-", *arguments)
    assert result.exit_code == 0, result.output
    return load_config_from_str(result.stdout, interpolate=False), result.stdout


def encoder_settings(config: Config) -> dict[str, Any]:
    return config["components"]["transformer"]["model"]


# The written file


@pytest.mark.parametrize("device", ["--cpu", "--gpu"])
@pytest.mark.parametrize("pipes", PIPELINES, ids=["first", "second"])
def test_nothing_is_left_to_fill_in(pipes: list[str], device: str, tmp_path: Path) -> None:
    config, text = written("--pipeline", ",".join(pipes), device)
    assert config["nlp"]["pipeline"] == ["transformer", *pipes]
    path = tmp_path / "train.cfg"
    path.write_text(text)
    nlp = load_model_from_config(load_config(path), auto_fill=True)
    assert nlp.config == config
    assert all(nlp.get_pipe_meta(pipe).factory == pipe for pipe in pipes)
    debug_config(path, overrides={"paths.train": "a.spacy", "paths.dev": "b.spacy"})
    for pipe in pipes:
        listener = config["components"][pipe]["model"]["tok2vec"]
        assert listener["@architectures"] == "spacy-distil.Listener.v1"
        assert listener["width"] is None


def test_both_pipelines_together_have_every_pipe() -> None:
    assert set().union(*PIPELINES) == set(PIPES)


def test_the_learning_rate_falls_to_zero_at_the_last_step() -> None:
    config, _ = written()
    overrides = {"training.max_steps": 300}
    config = load_config_from_str(config.to_str(), overrides=overrides, interpolate=True)
    assert config["training"]["max_steps"] == 300
    settings = {"schedule": config["training"]["optimizer"]["learn_rate"]}
    rates = list(islice(spacy.registry.resolve(settings)["schedule"], 301))
    assert max(rates) == 0.001
    assert rates[298] > rates[300] == 0


@pytest.mark.parametrize("device", ["--cpu", "--gpu"])
def test_the_encoder_has_every_setting_of_its_architecture(device: str) -> None:
    settings = encoder_settings(written(device)[0])
    assert settings.pop("@architectures") == "spacy-distil.DistilTransformer.v1"
    assert list(settings) == list(inspect.signature(DistilTransformer).parameters)


def test_cpu_and_gpu_differ_in_what_the_device_decides() -> None:
    cpu, gpu = (written(device)[0] for device in ("--cpu", "-G"))
    assert encoder_settings(cpu)["window"] == 192
    assert encoder_settings(cpu)["attention_dropout"] == 0
    assert encoder_settings(cpu)["mixed_precision"]
    assert cpu["system"]["gpu_allocator"] is None
    assert encoder_settings(gpu)["window"] is None
    assert encoder_settings(gpu)["attention_dropout"] is None
    assert encoder_settings(gpu)["mixed_precision"]
    assert gpu["system"]["gpu_allocator"] == "pytorch"
    assert gpu["training"]["batcher"]["size"] > cpu["training"]["batcher"]["size"]
    for config in (cpu, gpu):
        for name in ("window", "overlap", "attention_dropout"):
            del encoder_settings(config)[name]
        del config["system"]["gpu_allocator"], config["training"]["batcher"]["size"]
    assert cpu == gpu


def test_comments_say_why() -> None:
    for device in ("--cpu", "--gpu"):
        lines = written(device)[1].splitlines()
        for setting, reason in {
            "discard_oversize = false": "silently drops every doc that is longer than a",
            "patience = 0": "The learning rate falls to 0",
            "learn_rate_scale = 0.2": "start at random",
            "mixed_precision = true": "stay in float32",
        }.items():
            place = lines.index(setting)
            comment: list[str] = []
            while lines[place - 1].startswith("#"):
                place -= 1
                comment.insert(0, lines[place].removeprefix("# "))
            assert reason in " ".join(comment)
        assert max(len(line) for line in lines if not line.startswith("# Written by")) <= 100
        assert not [line for line in lines if line != line.rstrip()]
        assert "\n\n\n" not in "\n".join(lines)


def test_an_encoder_by_language_and_aim() -> None:
    def chosen(*arguments: str) -> tuple[str, float]:
        config, _ = written(*arguments)
        assert encoder_settings(config)["name"] == "${paths.encoder}"
        return config["paths"]["encoder"], encoder_settings(config)["learn_rate_scale"]

    assert chosen() == ("distilbert-base-uncased", 0.2)
    assert chosen("-l", "de") == ("distilbert-base-multilingual-cased", 0.2)
    assert chosen("-o", "accuracy") == ("roberta-base", 0.05)
    assert chosen("-l", "de", "-o", "accuracy") == ("bert-base-german-cased", 0.05)
    # A language of which spaCy recommends none.
    assert chosen("-l", "xx", "-o", "accuracy")[0] == "bert-base-multilingual-uncased"
    path = 'C:\\my "teacher"'
    assert chosen("--encoder", path, "-o", "accuracy") == (path, 0.05)


def test_a_language_with_a_tokenizer_of_its_own() -> None:
    config, _ = written("-l", "zh", "-p", "ner")
    assert config["nlp"]["lang"] == "zh"
    assert config["nlp"]["tokenizer"]["@tokenizers"] == "spacy.zh.ChineseTokenizer"
    nlp = load_model_from_config(config, auto_fill=True)
    assert nlp.config == config
    assert type(nlp) is type(spacy.blank("zh"))


def test_each_pipe_counts_the_same() -> None:
    """In any order, and although some pipes give another pipe's score the weight 0."""
    groups = {
        "tagger": ["tag_acc"],
        "morphologizer": ["pos_acc", "morph_acc"],
        "senter": ["sents_f"],
        "parser": ["dep_uas", "dep_las"],
    }
    for pipes in (list(groups), list(groups)[::-1]):
        weights = written("-p", ",".join(pipes))[0]["training"]["score_weights"]
        for names in groups.values():
            assert sum(weights[name] for name in names) == pytest.approx(0.25, abs=0.02)
    assert weights["tag_micro_f"] is None


def rewritten(kind: str, text: str) -> str:
    """Run the command in a config of this kind, and return its output."""
    (line,) = (line for line in text.splitlines() if line.startswith("# Written by: "))
    command = shlex.split(line.removeprefix("# Written by: "))
    assert command[:6] == ["python", "-m", "spacy", "distil", "init-config", kind]
    return init_config(kind, "-", *command[6:]).stdout


@pytest.mark.parametrize("kind", ["train", "pipeline"])
def test_the_projects_configs_are_of_these(kind: str) -> None:
    """Each says the command that writes it."""
    text = (ROOT / "configs" / f"{kind}.cfg").read_text(encoding="utf8")
    assert rewritten(kind, text) == text


# The command


def test_the_options_are_those_of_spacy() -> None:
    """Of the same names, short ones too, and with the same defaults."""
    root: Any = typer.main.get_command(app)
    ours, theirs = (
        {parameter.name: parameter for parameter in root.commands[group].commands[name].params}
        for group, name in (("distil", "init-config"), ("init", "config"))
    )
    for name in ("lang", "pipeline", "optimize", "gpu"):
        assert set(ours[name].opts) >= set(theirs[name].opts), name
        assert ours[name].default == theirs[name].default, name
    assert ours["force"].opts == theirs["force_overwrite"].opts


def test_it_is_printed_or_written(tmp_path: Path) -> None:
    text = training_config(pipes=["ner"])
    assert init_config("train", "-p", "ner").stdout == text
    path = tmp_path / "new" / "train.cfg"
    assert init_config("train", path, "-p", "ner").exit_code == 0
    assert path.read_text() == text
    result = init_config("train", path, "-p", "tagger")
    assert result.exit_code == 1
    assert "--force" in result.output
    assert path.read_text() == text
    assert init_config("train", path, "-p", "tagger", "-F").exit_code == 0
    assert path.read_text() == training_config(pipes=["tagger"])


def test_it_needs_no_torch() -> None:
    out = run_python(
        """
        import runpy
        sys.argv = ["spacy", "distil", "init-config", "train", "--pipeline", "tagger,distil_ner"]
        runpy.run_module("spacy", run_name="__main__")
        """,
        block=True,
    )
    assert out == training_config(pipes=["tagger", "distil_ner"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "ner,crf"], "this command knows no pipe 'crf'; add it"),
        (["-p", "transformer,ner"], "leave out 'transformer', every config has the encoder"),
        (["-p", ""], "No pipe to train. Choose from tagger, "),
        (["-p", "ner,ner"], "'ner' is named twice"),
        (["-p", "ner,distil_ner"], "ner and distil_ner write the same annotation"),
        (["-p", "textcat_multilabel,textcat"], "textcat and textcat_multilabel write the same"),
        (["-l", "english"], "lang = 'english': spaCy has no such language"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = init_config("train", tmp_path / "train.cfg", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "train.cfg").exists()


def test_an_unknown_aim_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimize = 'speed': expected one of efficiency, acc"):
        training_config(optimize="speed")  # type: ignore[arg-type]
    assert init_config("train", "-o", "speed").exit_code == 2


@pytest.mark.parametrize(
    ("kind", "option", "name"),
    [
        ("encoder", ["-l", "en"], "--lang"),  # also if it is the default
        ("encoder", ["-p", "ner"], "--pipeline"),
        ("encoder", ["--encoder", "x"], "--encoder"),
        ("encoder", ["-o", "accuracy"], "--optimize"),
        ("encoder", ["--cpu"], "--gpu/--cpu"),
        ("pipeline", ["-o", "accuracy"], "--optimize"),
        ("train", ["--teacher", "x"], "--teacher"),
    ],
)
def test_options_that_a_kind_would_ignore_are_refused(
    kind: str, option: list[str], name: str
) -> None:
    result = init_config(kind, "-", *option)
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert f"{name}: 'init-config {kind}' takes no such option" in output
    text = {
        "encoder": encoder_config(),
        "pipeline": pipeline_config(),
        "train": training_config(),
    }[kind]
    assert init_config(kind, "-").stdout == text


def test_the_teacher_of_an_encoder() -> None:
    name = 'C:\\my "teacher"'
    config = load_config_from_str(init_config("encoder", "-", "--teacher", name).stdout)
    assert config["teacher"]["name"] == name
    default = load_config_from_str(encoder_config())
    assert default["teacher"]["name"] == "bert-base-uncased"
    config["teacher"]["name"] = "bert-base-uncased"
    assert config == default


# Pipeline distillation


@pytest.mark.parametrize("device", ["--cpu", "--gpu"])
@pytest.mark.parametrize("pipes", PIPELINES, ids=["first", "second"])
def test_pipeline_and_train_differ_in_distillation_alone(pipes: list[str], device: str) -> None:
    options = ("-p", ",".join(pipes), "-l", "de", "--encoder", "x", device)
    config, student = (
        load_config_from_str(init_config(kind, "-", *options).stdout, interpolate=False)
        for kind in ("train", "pipeline")
    )
    assert student.pop("distillation")["corpus"] == "corpora.text"
    assert student["corpora"].pop("text")["@readers"] == "spacy-distil.Texts.v1"
    assert student["paths"].pop("text") is None
    assert student["training"]["logger"].pop("progress_bar") == "train"
    assert config["training"]["logger"].pop("progress_bar") is None
    assert student == config


def test_teacher_and_student_of_the_defaults_have_pipes_of_the_same_names() -> None:
    config, student = (
        load_config_from_str(init_config(kind).stdout, interpolate=False)
        for kind in ("train", "pipeline")
    )
    assert student["nlp"]["pipeline"] == config["nlp"]["pipeline"]
    assert student["components"] == config["components"]
    assert student["distillation"]["pipes"] == {}


@pytest.fixture(scope="module")
def teacher(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A German pipeline with a pipe of every sort, untrained: only its config is read."""
    nlp = spacy.blank("de")
    model = {"name": str(bert_dir), "window": 48, "overlap": 8, "pooling": "first"}
    nlp.add_pipe("distil_transformer", "encoder", config={"model": model})
    pipes = {"tags": "tagger", "rules": "attribute_ruler", "entities": "beam_ner"}
    pipes |= {"topics": "textcat", "span_finder": "span_finder", "senter": "senter"}
    pipes |= {"lemmas": "lemmatizer"}  # its config has a model, which is null
    for name, factory in pipes.items():
        nlp.add_pipe(factory, name)
    nlp.disable_pipe("senter")
    path = tmp_path_factory.mktemp("teacher")
    nlp.config.to_disk(path / "config.cfg")
    (path / "meta.json").write_text(json.dumps(nlp.meta))
    return path


def test_language_pipes_and_windows_are_those_of_the_teacher(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.cfg"
    result = init_config("pipeline", path, "--teacher", teacher)
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "'rules' has no model to train" in output
    assert "'span_finder' is left out: pipes of the kind 'span_finder' cannot learn" in output
    assert "'senter' is left out: it is disabled in the teacher" in output
    config = load_config(path)
    assert config["nlp"]["lang"] == "de"
    assert config["nlp"]["pipeline"] == [
        *("transformer", "tags", "rules", "entities", "topics", "lemmas")
    ]
    components = config["components"]
    kinds = {"tags": "tagger", "entities": "ner", "topics": "textcat"}
    assert {name: components[name]["factory"] for name in kinds} == kinds
    assert components["rules"] == components["lemmas"] == {"source": str(teacher)}
    assert config["training"]["score_weights"]["tag_acc"] == 0.33
    assert not config["training"]["score_weights"]["pos_acc"]
    encoder = encoder_settings(config)
    assert [encoder[name] for name in ("window", "overlap", "pooling")] == [48, 8, "first"]
    assert config["paths"]["encoder"] == "distilbert-base-multilingual-cased"
    text = path.read_text()
    assert rewritten("pipeline", text) == text


def test_models_unlike_the_teachers_are_named(bert_dir: Path, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("distil_transformer", config={"model": {"name": str(bert_dir)}})
    nlp.add_pipe("tagger", config={"model": {"normalize": True}})
    nlp.add_pipe("morphologizer")
    nlp.add_pipe("textcat")
    nlp.config.to_disk(tmp_path / "config.cfg")
    (tmp_path / "meta.json").write_text(json.dumps(nlp.meta))
    result = init_config("pipeline", "-", "--teacher", tmp_path)
    assert "The model of 'morphologizer'" not in result.stderr
    for name, difference in {
        "tagger": "normalize = false, the teacher's is true",
        "textcat": '@architectures = "spacy.TextCatReduce.v1", the teacher\'s is '
        '"spacy.TextCatEnsemble.v2"',
    }.items():
        assert (
            f"The model of {name!r} differs from the teacher's, whose weights may not fit it: "
            f"{difference}. Give it"
        ) in result.stderr


def test_options_go_before_the_teacher(teacher: Path) -> None:
    options = ("-l", "xx", "-p", "topics,parser", "--encoder", "x", "--gpu")
    result = init_config("pipeline", "-", "--teacher", teacher, *options)
    config = load_config_from_str(result.stdout)
    assert config["nlp"]["lang"] == "xx"
    assert config["nlp"]["pipeline"] == ["transformer", "topics", "parser"]
    assert config["components"]["topics"]["factory"] == "textcat"
    assert config["components"]["parser"]["factory"] == "parser"
    assert config["paths"]["encoder"] == "x"
    assert config["system"]["gpu_allocator"] == "pytorch"
    assert encoder_settings(config)["window"] == 48
    refused = init_config("pipeline", "-", "--teacher", teacher, "-p", "span_finder")
    assert "this command knows no pipe 'span_finder'" in " ".join(refused.output.split())
    refused = init_config("pipeline", "-", "--teacher", teacher, "-p", "")
    assert "No pipe to train" in refused.output


def test_another_language_than_the_teachers(teacher: Path, tmp_path: Path) -> None:
    """The student's own tokenizer, and none of the teacher's rules."""
    path = tmp_path / "student.cfg"
    result = init_config("pipeline", path, "--teacher", teacher, "-l", "zh")
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    for name in ("rules", "lemmas"):
        assert f"'{name}' is left out: its rules are for German" in output
    config = load_config(path)
    assert config["nlp"]["lang"] == "zh"
    assert config["nlp"]["pipeline"] == ["transformer", "tags", "entities", "topics"]
    assert config["nlp"]["tokenizer"]["@tokenizers"] == "spacy.zh.ChineseTokenizer"
    text = path.read_text()
    assert rewritten("pipeline", text) == text
    named = init_config("pipeline", "-", "--teacher", teacher, "-l", "zh", "-p", "tags,rules")
    assert "this command knows no pipe 'rules'" in " ".join(named.output.split())


def test_the_tokenizer_is_the_teachers(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "zh")
    config = load_config(teacher / "config.cfg")
    config["nlp"]["lang"] = "zh"
    config["nlp"]["tokenizer"] = {"@tokenizers": "spacy.zh.ChineseTokenizer", "segmenter": "jieba"}
    config["initialize"]["tokenizer"] = {"pkuseg_model": "mixed"}
    config.to_disk(tmp_path / "zh" / "config.cfg")
    text = init_config("pipeline", "-", "--teacher", tmp_path / "zh").stdout
    written = load_config_from_str(text)
    assert written["nlp"]["tokenizer"] == config["nlp"]["tokenizer"]
    assert written["initialize"]["tokenizer"] == config["initialize"]["tokenizer"]


@pytest.mark.parametrize("kind", ["train", "pipeline"])
def test_an_encoder_of_another_language_is_told(kind: str, tmp_path: Path) -> None:
    pieces = [*sorted(stop_words("en")), *(f"##{i}" for i in range(2000)), "a", "[UNK]"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for lang, told in {"de": True, "en": False, "xx": False}.items():
        result = init_config(kind, tmp_path / f"{lang}.cfg", "-l", lang, "--encoder", tmp_path)
        assert result.exit_code == 0
        output = " ".join(result.output.split())
        assert ("made for English, but the pipeline's language is German" in output) is told


def windows(*arguments: str | Path) -> tuple[int | None, int]:
    """Window and overlap of the config that the command prints."""
    result = init_config(*arguments)
    assert result.exit_code == 0, result.output
    encoder = encoder_settings(load_config_from_str(result.stdout))
    return encoder["window"], encoder["overlap"]


@pytest.mark.parametrize("kind", ["train", "pipeline"])
def test_windows_fit_the_encoder(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for positions, cpu, gpu in ((512, (192, 16), (None, 32)), (128, (128, 16), (None, 32))):
        path.write_text(json.dumps({"model_type": "bert", "max_position_embeddings": positions}))
        assert windows(kind, "-", "--encoder", tmp_path) == cpu
        assert windows(kind, "-", "--encoder", tmp_path, "--gpu") == gpu
    # The first two positions are the padding's. The overlap must fit, too.
    path.write_text(json.dumps({"model_type": "roberta", "max_position_embeddings": 34}))
    assert windows(kind, "-", "--encoder", tmp_path) == (32, 8)
    assert windows(kind, "-", "--encoder", tmp_path, "--gpu") == (None, 8)
    path.write_text("{")
    result = init_config(kind, "-", "--encoder", tmp_path)
    assert result.exit_code == 1
    assert "config.json is not valid JSON" in result.output


def test_a_teachers_windows_fit_another_encoder(teacher: Path, tmp_path: Path) -> None:
    for positions, expected in ((512, (48, 8)), (40, (40, 8)), (24, (24, 6))):
        settings = {"model_type": "bert", "max_position_embeddings": positions}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        options = ("--teacher", teacher, "--encoder", tmp_path)
        assert windows("pipeline", "-", *options) == expected


def test_a_teacher_with_another_encoder_leaves_ours_at_its_defaults(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec")
    nlp.add_pipe("tagger")
    nlp.to_disk(tmp_path)
    config = load_config_from_str(init_config("pipeline", "-", "--teacher", tmp_path).stdout)
    assert config["nlp"]["pipeline"] == ["transformer", "tagger"]
    default = load_config_from_str(pipeline_config())
    assert encoder_settings(config) == encoder_settings(default)


def test_a_teacher_can_be_a_package(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "de_small"
    shutil.copytree(teacher, package / "de_small-1.0")
    meta = json.loads((teacher / "meta.json").read_text()) | {"name": "small", "version": "1.0"}
    (package / "meta.json").write_text(json.dumps(meta))
    (package / "__init__.py").touch()
    info = tmp_path / "de_small-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: de_small\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_config_from_str(init_config("pipeline", "-", "--teacher", "de_small").stdout)
    assert config["components"]["rules"] == {"source": "de_small"}
    assert "topics" in config["nlp"]["pipeline"]
    result = init_config("pipeline", "-", "--teacher", "de_none")
    assert result.exit_code == 1
    assert "No pipeline 'de_none'" in " ".join(result.output.split())


# Schedules that fit a corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """10,000 words in two files, one of them further down."""
    nlp = spacy.blank("en")
    folder = tmp_path / "train"
    (folder / "more").mkdir(parents=True)
    for path in (folder / "a.spacy", folder / "more" / "b.spacy"):
        DocBin(docs=[Doc(nlp.vocab, words=["word"] * 50)] * 100).to_disk(path)
    return folder


def schedule_of(text: str) -> list[Any]:
    config = load_config_from_str(text, interpolate=True)
    training = config["training"]
    rate = training["optimizer"]["learn_rate"]
    assert rate["total_steps"] == training["max_steps"]
    assert training["patience"] == training["max_epochs"] == 0
    settings = [training["batcher"]["size"], training["max_steps"], rate["warmup_steps"]]
    return [*settings, training["eval_frequency"]]


def test_the_schedule_fits_the_corpus(corpus: Path) -> None:
    result = init_config("train", "-", "--corpus", corpus)
    assert schedule_of(result.stdout) == [100, 800, 80, 80]
    assert load_config_from_str(result.stdout)["paths"]["train"] == str(corpus)
    assert "# 800 batches of 100 words are 8 passes over the corpus, of 10,000 words." in (
        result.stdout
    )
    assert rewritten("train", result.stdout) == result.stdout
    assert schedule_of(init_config("train").stdout) == [1000, 1600, 100, 200]


def test_text_counts_too(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    text = tmp_path / "texts" / "text.txt"
    text.write_text("A few words of text, which are about 10 \n" * 10_000)  # 410 kB
    options = ("--corpus", corpus, "--text", tmp_path / "texts")
    result = init_config("pipeline", "-", *options)
    assert schedule_of(result.stdout)[:3] == [880, 800, 80]
    config = load_config_from_str(result.stdout)
    assert config["paths"]["train"] == str(corpus)
    assert config["paths"]["text"] == str(tmp_path / "texts")
    assert rewritten("pipeline", result.stdout) == result.stdout
    alone = init_config("pipeline", "-", "--text", text).stdout
    assert schedule_of(alone)[:2] == [780, 800]


def test_an_encoders_schedule_fits_its_text(tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("A few words of text, which are about 10 \n" * 50_000)  # 2 MB
    result = init_config("encoder", "-", "--corpus", files[0], "--corpus", files[1])
    config = load_config_from_str(result.stdout)
    assert config["corpus"]["train"] == [str(file) for file in files]
    training = config["training"]
    assert training["batch_size"] == 19  # of 1,904 blocks
    assert training["epochs"] == 6
    assert training["eval_frequency"] == training["checkpoint_frequency"] == 60
    assert training["log_frequency"] == 12
    default = load_config_from_str(init_config("encoder").stdout)
    assert default["training"]["batch_size"] == 128


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.spacy", None, "none.spacy does not exist"),
        ("text.txt", "text", "text.txt is no .spacy file"),
        ("damaged.spacy", "text", "damaged.spacy is not a .spacy file, or is damaged"),
    ],
)
def test_a_corpus_that_cannot_be_measured(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    for kind in ("train", "pipeline"):
        result = init_config(kind, tmp_path / "new.cfg", "--corpus", tmp_path / name)
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
    assert not (tmp_path / "new.cfg").exists()


def test_corpora_without_content(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "empty").mkdir()
    DocBin().to_disk(tmp_path / "empty.spacy")
    (tmp_path / "empty.txt").write_text("\n\n")
    for kind, options, message in (
        ("train", ["--corpus", tmp_path / "empty"], "is no .spacy file, or directory of them"),
        ("train", ["--corpus", tmp_path / "empty.spacy"], "has no documents in it"),
        ("train", ["--corpus", corpus, "--corpus", corpus], "takes one path"),
        ("pipeline", ["--text", tmp_path / "empty.txt"], "there is no text"),
        ("encoder", ["--corpus", tmp_path / "empty.txt"], "there is no text"),
        ("encoder", ["--corpus", tmp_path / "none.txt"], "does not exist"),
        ("train", ["--text", tmp_path / "empty.txt"], "takes no such option"),
    ):
        result = init_config(kind, "-", *options)
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
