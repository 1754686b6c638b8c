"""Loading a stage: YAML, overrides, every mistake explained with its place, and the way back to YAML."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.config.load import load_stage, to_yaml
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.yaml_text import parse_yaml, write_yaml
from megatron_apriel.errors import ConfigError
from megatron_apriel.testing.stages import small_stage

STAGE = """\
stage: trial
init_from: models/start
output: ${TRIAL_ROOT:-runs}/trial
train: {tower: frozen, projector: 0.5, decoder: 1.0}
sequence_length: 4Ki
batch_tokens: 64Ki
tokens: 1M
optimizer: {peak: 1e-5, warmup: 2%, decay: linear}
mixture:
  - {corpus: data/a, weight: 70%, loss: responses}
  - {corpus: data/b, weight: 30%}
checkpoint: {every: 2, keep: equispaced 6}
logging: {wandb: off}
"""


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    path = tmp_path / "stage.yaml"
    path.write_text(STAGE)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_stage(path, overrides)
    text = str(caught.value)
    for raw in ("Input should", "Value error", "validation error", "pydantic", "Extra inputs", "Field required"):
        assert raw not in text
    return text.replace(str(path), "stage.yaml")


def test_values(stage: Path) -> None:
    config = load_stage(stage)
    assert config.output == Path("runs/trial")
    assert (config.train.tower, config.train.projector) == (0.0, 0.5)
    assert config.trained_components == ("projector", "decoder")
    assert (config.sequence_length, config.sequences_per_step, config.steps) == (4096, 16, 16)
    assert (config.optimizer.peak, config.optimizer.warmup) == (1e-5, 0.02)
    assert [source.label for source in config.mixture] == ["a", "b"]
    assert config.logging.wandb == "off"
    assert str(config.checkpoint.keep) == "equispaced 6"


def test_overrides(stage: Path) -> None:
    config = load_stage(
        stage,
        [
            "tokens=10M",
            "parallel.tensor=2",
            "parallel.tensor=4",
            "mixture.0.weight=60%",
            "mixture.1={corpus: data/c, weight: 40%, name: other}",
            "checkpoint.keep=last 3",
            "validation.corpora=[{corpus: data/v}]",
            "optimizer.betas=[0.9, 0.99]",
            "train={decoder: 1}",
        ],
    )
    assert config.tokens == 10_000_000 and config.parallel.tensor == 4
    assert [(source.label, source.weight) for source in config.mixture] == [("a", 0.6), ("other", 0.4)]
    assert str(config.checkpoint.keep) == "last 3"
    assert config.validation is not None and config.validation.corpora[0].corpus == Path("data/v")
    assert config.optimizer.betas == (0.9, 0.99)
    assert config.train.projector == 0.0
    assert load_stage(stage, ["validation=null"]).validation is None


def test_round_trip(stage: Path, tmp_path: Path) -> None:
    config = load_stage(
        stage, ["mixture.0.name='off'", "stage='1e5'", "optimizer.peak=0.1", "precision.fp8=tensorwise"]
    )
    text = to_yaml(config)
    written = tmp_path / "resolved.yaml"
    written.write_text(text)
    assert load_stage(written) == config
    assert set(parse_yaml(text, "resolved")[0]) == set(StageConfig.model_fields)


def test_unknown_key_names_the_nearest(stage: Path) -> None:
    stage.write_text(STAGE + "parallel:\n  tenser: 4\n")
    assert refusal(stage) == (
        "stage.yaml, line 15: parallel.tenser is not a setting.\n"
        "  Did you mean parallel.tensor?\n"
        "  docs/configuration.md explains every setting."
    )
    stage.write_text(STAGE)
    assert (
        "override mixture.1.wieght=1: mixture.1.wieght is not a setting.\n  Did you mean mixture.1.weight?"
        in refusal(stage, "mixture.1.wieght=1")
    )
    assert "Did you mean parallel.tensor?" in refusal(stage, "tensor=4")
    assert "Did you mean sequence_length?" in refusal(stage, "sequence_lenght=4")
    assert "Settings of recompute: mode, layers, inputs." in refusal(stage, "recompute.granularity=4")


def test_a_stage_is_as_long_as_its_tokens_or_its_epochs(stage: Path, tmp_path: Path) -> None:
    both = "epochs: tokens=1000000 and epochs=3 cannot both say how long the stage is; set one null."
    assert f"override epochs=3: {both}" in refusal(stage, "epochs=3")
    assert "line 7: epochs: neither" not in refusal(stage, "tokens=null")
    assert "neither tokens nor epochs is given" in refusal(stage, "tokens=null")
    assert "epochs=20000.0 is not possible.\n  It must be at most 10000." in refusal(stage, "tokens=null", "epochs=2e4")
    assert "neither tokens nor epochs" not in refusal(stage, "tokens=many")
    config = load_stage(stage, ["tokens=null", "epochs=2.5"])
    assert (config.tokens, config.epochs) == (None, 2.5)
    written = tmp_path / "resolved.yaml"
    written.write_text(to_yaml(config))
    assert load_stage(written) == config
    written.write_text(to_yaml(config.lasting(12_288)))
    resolved = load_stage(written)
    assert (resolved.tokens, resolved.epochs) == (12_288, None)


def test_a_former_name_is_answered_with_what_to_write(stage: Path) -> None:
    words = "A source has max_epochs, a bound: a run that would need more is refused. A stage has epochs."
    assert f"mixture.1.epochs is not a setting.\n  {words}" in refusal(stage, "mixture.1.epochs=2")
    corpora = "validation.corpora=[{corpus: data/v, epochs: 1}]"
    assert f"validation.corpora.0.epochs is not a setting.\n  {words}" in refusal(stage, corpora)
    assert load_stage(stage, ["mixture.1.max_epochs=2.5"]).mixture[1].max_epochs == 2.5


def test_sources_without_weights_share_evenly(stage: Path) -> None:
    three = "mixture=[{corpus: data/a}, {corpus: data/b}, {corpus: data/c}]"
    assert [source.weight for source in load_stage(stage, [three]).mixture] == [1 / 3, 1 / 3, 1 / 3]
    assert [source.weight for source in load_stage(stage, ["mixture=[{corpus: data/a}]"]).mixture] == [1.0]
    left_out = load_stage(stage, [three, "mixture.1.weight=0"]).mixture
    assert [(source.label, source.weight) for source in left_out] == [("a", 0.5), ("c", 0.5)]
    validation = "validation.corpora=[{corpus: data/v}, {corpus: data/w, weight: 20%}]"
    assert load_stage(stage, [three, validation]).validation is not None


@pytest.mark.parametrize(
    ("weights", "advice"),
    [
        (["70%", None], "b has no weight, and other sources have one; write weight: 0.3 for what the others leave"),
        (["40%", None, None], "b, c have no weight, and other sources have one; write each weight: 0.3 for what"),
        (["100%", None], "b has no weight, and other sources have one; the others leave nothing for it: lower theirs"),
        (["70%", "40%", None], "the others leave nothing for it: lower theirs, or give none to any"),
    ],
)
def test_a_source_without_a_weight_beside_others_with_one(stage: Path, weights: list[str | None], advice: str) -> None:
    sources = [{"corpus": f"data/{name}"} for name in "abc"]
    sources = [
        source | ({"weight": weight} if weight else {}) for source, weight in zip(sources, weights, strict=False)
    ]
    assert advice in refusal(stage, f"mixture={json.dumps(sources)}")
    if "write" in advice:
        given = re.search(r"weight: ([0-9.]+)", advice)
        assert given is not None
        filled = [{"weight": given[1]} | source for source in sources]
        assert len(load_stage(stage, [f"mixture={json.dumps(filled)}"]).mixture) == len(weights)


def test_all_mistakes_in_one_message(stage: Path) -> None:
    stage.write_text(STAGE.replace("linear", "lineal").replace("70%", "70%%").replace("tokens: 1M\n", ""))
    text = refusal(stage, "parallel.pipeline=0", "seed=one", "logging.tensorboard=perhaps")
    assert text.startswith("stage.yaml has 6 mistakes.\n")
    assert "line 7: optimizer.decay='lineal' is not possible. It must be one of linear, cosine, constant." in text
    assert "line 9: mixture.0.weight: '70%%' is not a fraction; write for example 10% or 0.1." in text
    assert "epochs: neither tokens nor epochs is given; write how long the stage is, as tokens: 1B." in text
    assert "override parallel.pipeline=0: parallel.pipeline=0 is not possible. It must be at least 1." in text
    assert "override seed=one: seed='one' is not possible. It must be a whole number." in text
    assert "override logging.tensorboard=perhaps: " in text and "It must be true or false." in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train={decoder: 0}", "train: every part is frozen; give at least one of tower, projector, decoder"),
        ("train.decoder=on", "train.decoder: 'on' is neither 'frozen' nor a learning-rate factor"),
        ("train.decoder=-1", "train.decoder=-1 is not possible.\n  It must be at least 0."),
        ("optimizer.peak=0", "It must be above 0."),
        ("optimizer.peak=.inf", "It must be a finite number."),
        ("optimizer.peak=true", "optimizer.peak: true is not a number."),
        ("optimizer.betas=[0.9]", "optimizer.betas has too few values.\n  optimizer.betas.1 is missing."),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1=1 is not possible.\n  It must be below 1."),
        ("optimizer=null", "optimizer=null (empty) is not possible.\n  It must be a section with settings of its own."),
        ("mixture=[]", "It must be at least 1 value."),
        ("mixture=data/a", "It must be a list."),
        ("mixture.1.corpus=other/a", "mixture: two sources are called 'a'; give each its own name."),
        (
            "tokens=1000000T",
            "tokens=1000000000000000000 are 244,140,625,000,000 sequences of 4096, and a stage has at most",
        ),
        ("mixture.1.weight=20%", "the mixture's weights sum to 90.0000%, not 100% (a 70.0000%, b 20.0000%)."),
        ("mixture.1.corpus=${TRIAL_NOT_SET}/b", "export TRIAL_NOT_SET=..., or write ${TRIAL_NOT_SET:-default}."),
        ("tokens=${TRIAL_NOT_SET}", "is not a number with a unit"),
        ("batch_tokens=10000", "is not a multiple of sequence_length=4096; nearest: 8192 or 12288."),
        ("batch_tokens=100", "nearest: 4096."),
        ("tokens=0", "tokens: must be at least 1."),
        ("stage=a b", "stage='a b' is not possible.\n  It must be text that matches"),
        ("stage=7", "It must be text (in quotes, if it looks like a number)."),
        ("parallel.virtual=2", "parallel: virtual=2 needs pipeline above 1"),
        (
            "parallel.layers_per_stage=even",
            "parallel.layers_per_stage: 'even' is neither 'balanced' nor a list such as",
        ),
        ("parallel.layers_per_stage=24", "parallel.layers_per_stage: 24 is neither 'balanced' nor a list such as"),
        (
            "parallel.layers_per_stage=[0, 4]",
            "parallel.layers_per_stage.0=0 is not possible.\n  It must be at least 1.",
        ),
        ("parallel.sequence=true", "parallel: sequence=true needs tensor above 1; set sequence=false"),
        (
            "parallel={tensor: 2, tensor_overlap: true}",
            "parallel: tensor_overlap=true needs sequence=true: without it there are sums over ranks",
        ),
        (
            "parallel.dealing=random",
            "parallel.dealing='random' is not possible.\n  It must be one of in_order, evenly.",
        ),
        ("precision={fp8: tensorwise, compute: fp32}", "precision: fp8=tensorwise needs compute=bf16, not fp32"),
        ("precision={fp8: delayed, bf16_layers_at_end: 1}", "precision: fp8=delayed cannot keep layers in bf16"),
        (
            "precision={bf16_layers_at_start: 2}",
            "precision: bf16_layers_at_start=2 has no meaning with fp8=none; set a recipe, or bf16_layers_at_start=0.",
        ),
        ("precision.bf16_layers_at_end=1", "precision: bf16_layers_at_end=1 has no meaning with fp8=none"),
        ("recompute.layers=3", "recompute: layers=3 has no meaning with mode=none; set mode=full, or layers=null."),
        ("checkpoint.keep=some", "checkpoint.keep: 'some' is no policy; write 'all', 'last 3' or 'equispaced 6'."),
        ("checkpoint.keep=3", "checkpoint.keep: 3 is no policy; write 'all', 'last 3' or 'equispaced 6'."),
        ("checkpoint.keep=last 0", "checkpoint.keep: 'last' needs a number above 0, as in 'last 3'."),
        ("checkpoint.keep=all 3", "'all 3' is no policy"),
        ("checkpoint.keep={policy: all, number: 3}", "'all' has no number, not 3; write 'all', or 'last 3'."),
        ("checkpoint.max_shard_size=0", "It must be at least 1."),
        ("seed=-1", "It must be at least 0."),
        ("seed=2147483648", "It must be below 2147483648."),
        ("samples={prompts: ['']}", "samples.prompts.0.text='' is not possible.\n  It must be at least 1 letter."),
        (f"evaluate={{benchmarks: [{'a' * 101}]}}", "It must be at most 100 letters."),
        ("images.threads=${N}", "Variables are replaced in paths only; give it on the command line instead."),
    ],
)
def test_single_mistakes(stage: Path, override: str, message: str) -> None:
    text = refusal(stage, override)
    assert message in text
    assert text.startswith(
        ("stage.yaml, override", "stage.yaml: the mixture", "stage.yaml: batch_tokens", "stage.yaml: tokens")
    )


def test_a_weight_that_would_never_count(stage: Path) -> None:
    text = refusal(stage, "mixture.0.weight=0.9999997", "mixture.1.weight=0.0000003")
    assert "the weight of b, 3e-07, cannot be distinguished from 0; give at least 1e-06, or 0 to leave" in text
    left = load_stage(stage, ["mixture.0.weight=100%", "mixture.1.weight=0"])
    assert [source.label for source in left.mixture] == ["a"]
    assert "every source has weight 0" in refusal(stage, "mixture.0.weight=0", "mixture.1.weight=0")


def test_a_mistake_inside_an_override_is_not_blamed_on_the_file(stage: Path) -> None:
    for override, mistake in (
        ("optimizer={peak: -1}", "optimizer.peak=-1 is not possible"),
        ("mixture=[{corpus: x, wieght: 100%}]", "mixture.0.wieght is not a setting"),
        ("optimizer.betas=[0.9]", "optimizer.betas has too few values"),
    ):
        assert f"override {override}: {mistake}" in refusal(stage, override)


def test_an_alias_is_overridden_in_one_place(stage: Path) -> None:
    text = STAGE.replace("mixture:", "mixture: &sources")
    stage.write_text(text + "validation: {corpora: *sources}\n")
    config = load_stage(stage, ["mixture.0.corpus=other"])
    assert config.mixture[0].corpus.name == "other"
    assert config.validation is not None and config.validation.corpora[0].corpus.name == "a"


def test_the_device_decides_on_the_type_that_is_not_named() -> None:
    named, either = (small_stage(precision=precision) for precision in ({"compute": "bf16"}, {}))
    assert either.precision.compute == "auto"
    assert [either.precision.compute_on(gpu) for gpu in (True, False)] == ["bf16", "fp32"]
    assert [named.precision.compute_on(gpu) for gpu in (True, False)] == ["bf16", "bf16"]
    assert [either.with_compute_on(gpu).precision.compute for gpu in (True, False)] == ["bf16", "fp32"]
    # What needs a GPU goes with what is chosen there.
    assert small_stage(precision={"fp8": "tensorwise"}, attention="flash").precision.compute_on(True) == "bf16"


def test_flash_attention_computes_in_bf16(stage: Path) -> None:
    text = refusal(stage, "attention=flash", "precision.compute=fp32")
    assert "attention=flash needs precision.compute=bf16, not fp32; set attention=auto." in text
    assert load_stage(stage, ["attention=flash"]).attention == "flash"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokens", "'tokens' is not an override.\n  After the stage's file come settings"),
        ("a..b=1", "'a..b=1' is not an override."),
        ("=1", "'=1' is not an override."),
        ("mixture[0].weight=60%", "the items of a list are named with dots.\n  Write mixture.0.weight=60%"),
        ("optimizer.lr(x)=3", "optimizer.lr(x) is not a setting."),
        ("mixture.2.weight=1", "mixture has no item 2.\n  mixture is a list of 2.\n  Items: mixture.0, mixture.1;"),
        ("mixture.x.weight=1", "mixture has no item x."),
        ("stage.name=x", "stage is 'trial', which has no part 'name'."),
        ("validation.corpora.0.weight=1", "validation.corpora has no items in the file."),
        ("mixture={a", "override 'mixture={a', line 1, column"),
    ],
)
def test_overrides_that_cannot_be_applied(stage: Path, override: str, message: str) -> None:
    assert message in refusal(stage, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stage.yaml is empty, not settings.\n  A stage is described by lines of the form 'name: value'."),
        ("- 1\n", "stage.yaml holds a list, not settings."),
        ("a: 1\nb: {c: 1,\n  c: 2}\n", "stage.yaml, line 3: 'c' stands twice; first in line 2."),
        ("a: 1\nb: [c\nd: 3\n", "stage.yaml, line 3, column 2: expected ',' or ']', but got ':'."),
        ("a: *x\n", "stage.yaml, line 1, column 4: found undefined alias 'x'."),
        ("a: &x [*x]\n", "an alias refers to what contains it."),
        ("a: 1\n---\nb: 2\n", "expected a single document in the stream, but found another document."),
        ("a: !!python/name:os.system\n", "could not determine a constructor for the tag"),
        ("a: 1\n? [1, 2]\n: 3\n", "stage.yaml, line 2: a key must be a single word."),
        ("a: 1\nb: \x01\n", "stage.yaml, line 2: the character '\\x01' is not allowed."),
        ("a:\t- 1\n  b", "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_yaml(stage: Path, text: str, message: str) -> None:
    stage.write_text(text)
    assert message in refusal(stage)


def test_missing_and_unreadable_files(stage: Path) -> None:
    text = refusal(stage.with_name("stag.yaml"))
    assert "does not exist.\n  A stage is described by one YAML file.\n  Files there: " in text
    assert str(stage.name) in text
    stage.write_bytes(b"\xff\xfe\xfa")
    assert "cannot be read: 'utf-8' codec" in refusal(stage)
    assert "cannot be read" in refusal(stage.parent)


def test_words_stay_words() -> None:
    text = "a: off\nb: 010\nc: 1e-5\nd: 1:30\ne: 2020-01-01\nf: yes\ng: ~\nh: 1_000\ni: 'true'\nj: true\n"
    assert parse_yaml(text, "here")[0] == {
        "a": "off", "b": 10, "c": 1e-5, "d": "1:30", "e": "2020-01-01", "f": "yes", "g": None, "h": 1000, "i": "true",
        "j": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    ["off", "no", "1e-5", "010", "1:30", "true", "", "~", "0x10", "<<", "a: b", "é", "# x", 1e-30, 5, True, None],
)
def test_written_values_are_read_back(value: Any) -> None:
    read = parse_yaml(write_yaml({"key": value}), "here")[0]["key"]
    assert read == value and type(read) is type(value)


def test_no_random_damage_gives_a_traceback(stage: Path) -> None:
    """A file with characters changed, cut or repeated loads or is refused in the project's words."""
    drawn = random.Random(0)
    for _ in range(150):
        text = list(STAGE)
        for _ in range(drawn.randint(1, 6)):
            place = drawn.randrange(len(text))
            text[place] = drawn.choice(
                ["", " ", "\n", ":", "{", "]", "-", "'", "x", "0", "%", "\t", "&", text[place] * 2]
            )
        stage.write_text("".join(text))
        try:
            load_stage(stage)
        except ConfigError as error:
            assert "Input should" not in str(error)


def test_loading_imports_no_torch(stage: Path) -> None:
    program = (
        "import sys; from megatron_apriel.config.load import load_stage; import megatron_apriel.parallel.checks, "
        f"megatron_apriel.planning.dry_run; load_stage({str(stage)!r}, []); "
        "heavy = {'torch', 'megatron.core', 'transformers'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_samples_are_texts_or_sections(stage: Path) -> None:
    config = load_stage(stage, ["samples={prompts: [Hi, {text: See, image: a.png}], every: 2}"])
    assert config.samples is not None
    assert [(prompt.text, prompt.image) for prompt in config.samples.prompts] == [("Hi", None), ("See", Path("a.png"))]
    assert load_stage(stage).samples is None
    for override, message in (
        ("samples={prompts: []}", "at least 1 value"),
        ("samples={prompts: [3]}", "samples.prompts.0=3 is not possible"),
        ("samples={prompts: [Hi], max_tokens: 0}", "at least 1"),
        ("samples={prompts: [{text: Hi, picture: a.png}]}", "samples.prompts.0.picture is not a setting"),
    ):
        assert message in refusal(stage, override)
    assert "another precision.fp8 than delayed" in refusal(
        stage, "samples={prompts: [Hi]}", "precision={compute: bf16, fp8: delayed}"
    )


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            ["precision.fp8=blockwise"],
            "cannot gather numbers of fp8=blockwise, which have a scale for each block; set it",
        ),
        (
            ["precision={fp8: tensorwise, bf16_layers_at_start: 1}"],
            "gathers all layers' numbers in 8 bits or none; set it",
        ),
        (["samples={prompts: [a]}"], "has buffers for whole sequences, and samples are shorter; set it to false"),
    ],
)
def test_what_user_buffers_cannot_do(further: list[str], message: str) -> None:
    path = Path(__file__).parents[3] / "examples" / "cpt_stage2.yaml"
    overlapped = "parallel={tensor: 2, sequence: true, tensor_overlap: %s}"
    with pytest.raises(ConfigError) as caught:
        load_stage(path, [overlapped % "true", *further])
    assert f"parallel.tensor_overlap=true {message}" in str(caught.value)
    load_stage(path, [overlapped % "false", *further])
    load_stage(path, [overlapped % "true", "precision.fp8=tensorwise"])
