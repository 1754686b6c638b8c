"""Values of ``${NAME}`` in a configuration: used as paths, and shown by their names."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel import concealed
from megatron_apriel.config.load import load_stage, to_yaml
from megatron_apriel.errors import ConfigError, DataError, printable
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.quantities import parse_path
from megatron_apriel.train.metrics import Metrics

SECRET = "hf_T0ken-of-mine"
STAGE = """\
stage: trial
init_from: ${TRIAL_TOKEN}/start
output: ${TRIAL_ROOT}/run-${TRIAL_TOKEN}
train: {decoder: 1.0}
sequence_length: 4Ki
batch_tokens: 64Ki
tokens: 1M
optimizer: {peak: 1e-5}
mixture:
  - {corpus: "${TRIAL_ROOT:-data}/${TRIAL_TOKEN}", weight: 70%}
  - {corpus: "${TRIAL_UNSET:-data}/b", weight: 30%}
logging: {wandb: offline}
"""


@pytest.fixture(autouse=True)
def nothing_concealed_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(concealed, "_words", {})
    monkeypatch.setattr(concealed, "_pattern", None)
    yield


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIAL_TOKEN", SECRET)
    monkeypatch.setenv("TRIAL_ROOT", str(tmp_path))
    monkeypatch.delenv("TRIAL_UNSET", raising=False)
    file = tmp_path / "stage.yaml"
    file.write_text(STAGE, encoding="utf-8")
    return file


def test_a_configuration_is_written_as_it_was_spelled(stage: Path, tmp_path: Path) -> None:
    config = load_stage(stage)
    assert config.output == tmp_path / f"run-{SECRET}"
    text = to_yaml(config)
    for line in (
        "init_from: ${TRIAL_TOKEN}/start",
        "output: ${TRIAL_ROOT}/run-${TRIAL_TOKEN}",
        "corpus: ${TRIAL_ROOT}/${TRIAL_TOKEN}",
        "corpus: data/b",
    ):
        assert line in text
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_stage(again) == config
    assert [source.label for source in config.mixture] == ["${TRIAL_TOKEN}", "b"]
    for shown in (text, repr(config), str(config), json.dumps(config.model_dump(mode="json"))):
        assert SECRET not in shown and str(tmp_path) not in shown


def test_paths_work_as_paths(stage: Path, tmp_path: Path) -> None:
    output = load_stage(stage).output
    for one in (output, copy.copy(output), copy.deepcopy(output)):
        assert one == tmp_path / f"run-{SECRET}" and hash(one) == hash(Path(output))
        assert repr(one) == "Path('${TRIAL_ROOT}/run-${TRIAL_TOKEN}')"
    (output / "final").mkdir(parents=True)
    assert [place.name for place in output.iterdir()] == ["final"]
    assert output.parent == tmp_path and type(output / "final") is type(tmp_path)


def test_messages_of_all_rooms_show_the_name(stage: Path, tmp_path: Path) -> None:
    config = load_stage(stage)
    error = DataError(f"{config.output / 'corpus.json'} does not exist.", f"Looked in {config.mixture[0].corpus}.")
    assert str(error) == (
        "${TRIAL_ROOT}/run-${TRIAL_TOKEN}/corpus.json does not exist.\n  Looked in ${TRIAL_ROOT}/${TRIAL_TOKEN}."
    )
    assert printable(f"x{tmp_path}/a {SECRET}") == f"x{tmp_path}/a ${{TRIAL_TOKEN}}"


def test_mistakes_show_the_name(stage: Path) -> None:
    for override in ("mixture.1.corpus=${TRIAL_ROOT}/${TRIAL_TOKEN}", "tokens=0", "init_from=${TRIAL_TOKEN", "seed=x"):
        with pytest.raises(ConfigError) as caught:
            load_stage(stage, [override])
        assert SECRET not in str(caught.value)


def test_the_dry_run_shows_the_name(stage: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    print_plan(load_stage(stage), 8, architecture="apriel-15b", console=Console(file=shown, width=200))
    assert "note: init_from ${TRIAL_TOKEN}/start does not exist yet." in shown.getvalue()
    assert SECRET not in shown.getvalue() and str(tmp_path) not in shown.getvalue()
    with pytest.raises(ConfigError) as caught:
        print_plan(load_stage(stage), 8)
    assert "init_from=${TRIAL_TOKEN}/start does not exist" in str(caught.value)


def test_metrics_are_given_the_name(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}
    logged: list[dict[str, float]] = []

    def init(**options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(log=lambda scalars, step: logged.append(scalars), finish=lambda: None)

    monkeypatch.setitem(__import__("sys").modules, "wandb", SimpleNamespace(init=init))
    config = load_stage(stage)
    metrics = Metrics(config, rank=0)
    metrics.write("resumed", 4, steps=16, path=str(config.output / "checkpoints"), seconds=1.0)
    metrics.write("validation", 4, steps=16, loss_by_source={"a\x1b[2J\n": 2.0, SECRET: 1.0})
    metrics.close()
    assert given["config"]["init_from"] == "${TRIAL_TOKEN}/start"
    assert SECRET not in json.dumps(given["config"])
    written = (config.output / "metrics.jsonl").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "resumed from ${TRIAL_ROOT}/run-${TRIAL_TOKEN}/checkpoints" in out
    assert r"held-out loss a\x1b[2J\n 2.0000, ${TRIAL_TOKEN} 1.0000" in out
    assert logged[-1].keys() == {r"validation/loss/a\x1b[2J\n", "validation/loss/${TRIAL_TOKEN}"}
    assert SECRET not in out + written


@pytest.mark.parametrize(
    ("value", "text", "shown"),
    [
        ("runs", "runs interleaved in runs/a", None),
        ("models", "other models in models/a", "other models in ${X}/a"),
        ("7", "step 7/40", None),
        ("/", "a / b", None),
        ("/mnt/data", "of /mnt/data/text, /mnt/database", "of ${X}/text, /mnt/database"),
        ("s3cret", "s3cret s3cret2 as3cret (s3cret)", "${X} s3cret2 as3cret (${X})"),
    ],
)
def test_words_of_sentences_stay(value: str, text: str, shown: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", value)
    parse_path("${X}")
    assert printable(text) == (text if shown is None else shown)
