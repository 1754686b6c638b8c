"""Resuming with other settings: refused by name, or changed on request with the data going on where they were."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.errors import CheckpointError, ConfigError, DataError
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.formats.run_record import RunState
from megatron_apriel.planning.changes import Resumption, check_same_data, resumption
from megatron_apriel.testing.corpora import VOCAB, write_corpus
from megatron_apriel.testing.stages import small_stage

NEWEST = Path("runs/trial/checkpoints/step_00000005")
MODEL = Architecture(DecoderArchitecture(32, 2, 2, 1, 16, 64, VOCAB))
STEPS, SEQUENCES, LENGTH = 5, 4, 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora of documents that nearly fill a sequence, so that a pack is one of them."""
    root = tmp_path_factory.mktemp("changes")
    for seed, (name, number) in enumerate({"text": 30, "code": 23, "maths": 9}.items()):
        write_corpus(root / name, [40 + (7 * document + seed) % 20 for document in range(number)], seed=seed)
    return root


def source(root: Path, name: str, weight: float, **settings: Any) -> dict[str, Any]:
    return {"corpus": str(root / name), "weight": weight, **settings}


def stage(root: Path, *sources: dict[str, Any], steps: int = 10, **changes: Any) -> StageConfig:
    mixture = list(sources) or [source(root, "text", 0.5), source(root, "code", 0.5)]
    return small_stage(LENGTH, SEQUENCES, mixture=mixture, tokens=steps * SEQUENCES * LENGTH, **changes)


Seen = list[tuple[str, int]]
"""Corpus and document, in the order in which a run met them."""


def trained(config: StageConfig, first: int = 0, steps: int = STEPS, resumed: Resumption | None = None) -> Any:
    """What a run saw in so many steps, and its state after them, as the loop saves it."""
    beginning = {} if resumed is None else {"beginning": resumed.mixture}
    numbers = range(first * SEQUENCES, (first + steps) * SEQUENCES)
    with TrainingLoader(config, MODEL, first_sequence=numbers.start, **beginning) as loader:
        seen = [
            (Path(place["corpus"]).name, document)
            for place in map(loader.describe, numbers)
            for document in place["samples"]
        ]
        state = RunState(
            sequences=numbers.stop,
            config=config.model_dump(mode="json"),
            corpora=[each.corpus.fingerprint for each in loader.sources],
            packs=list(loader.mixture.packs_before(numbers.stop)),
            changes=resumed.changes if resumed is not None else [],
        )
    return seen, RunState.model_validate_json(state.model_dump_json(), strict=True)


def of(seen: Seen, corpus: str) -> list[int]:
    return [document for name, document in seen if name == corpus]


def test_only_what_differs_is_printed_with_the_way_out(root: Path) -> None:
    _, state = trained(stage(root))
    other = stage(root, optimizer={"peak": 5e-6, "clip": 2.0}, seed=7)
    with pytest.raises(ConfigError) as caught:
        resumption(other, NEWEST, STEPS, state, change=True)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("step_00000005 was made with other settings:")
    assert lines[1:4] == ["  optimizer.peak: 1e-05 -> 5e-06", "  optimizer.clip: 1.0 -> 2.0", "  seed: 1234 -> 7"]
    assert lines[4] == "  optimizer.clip, seed cannot change within a run. optimizer.peak can."
    assert f"begin a new stage: init_from={NEWEST}" in lines[5]
    assert "optimizer state and the position in the data are lost" in lines[6]
    assert len(lines) == 7


def test_what_may_change_still_has_to_be_asked_for(root: Path) -> None:
    _, state = trained(stage(root))
    other = stage(root, optimizer={"peak": 5e-6})
    with pytest.raises(ConfigError, match=r"optimizer\.peak: 1e-05 -> 5e-06\n.*\n.*Add --change") as caught:
        resumption(other, NEWEST, STEPS, state, change=False)
    assert len(str(caught.value).splitlines()) == 5
    assert resumption(stage(root), NEWEST, STEPS, state, change=False).new is None


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"optimizer": {"peak": 5e-6}}, {"optimizer.peak": [1e-5, 5e-6]}),
        (
            {"optimizer": {"peak": 1e-5, "decay": "linear", "minimum": 0, "warmup": 0.2}},
            {"optimizer.minimum": [0.1, 0.0], "optimizer.warmup": [0.1, 0.2], "optimizer.decay": ["cosine", "linear"]},
        ),
        (
            {"optimizer": {"peak": 1e-5, "moments": "int8", "master": "24bit", "gradients": "24bit"}},
            {
                "optimizer.moments": ["float32", "int8"],
                "optimizer.master": ["float32", "24bit"],
                "optimizer.gradients": ["float32", "24bit"],
            },
        ),
        ({"steps": 12}, {"tokens": [2560, 3072]}),
        ({"steps": 5}, {"tokens": [2560, 1280]}),
    ],
)
def test_rate_schedule_and_length_change_and_the_data_stay(
    root: Path, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    _, state = trained(stage(root))
    resumed = resumption(stage(root, **changes), NEWEST, STEPS, state, change=True)
    assert resumed.new is not None
    assert (resumed.new.step, resumed.new.settings) == (STEPS, settings)
    rest = min(changes.get("steps", 10) - STEPS, 5)
    changed, _ = trained(stage(root, **changes), STEPS, rest, resumed)
    assert changed == trained(stage(root), STEPS, rest)[0]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 5}, "seed"),
        ({"stage": "other"}, "stage"),
        ({"train": {"decoder": 0.5}}, "train.decoder"),
        ({"train": {"decoder": 1, "tower": 1}}, "train.tower"),
        ({"batch_tokens": 2 * SEQUENCES * LENGTH}, "batch_tokens"),
        ({"optimizer": {"peak": 1e-5, "betas": [0.9, 0.99]}}, "optimizer.betas"),
        ({"optimizer": {"peak": 1e-5, "eps": 1e-7}}, "optimizer.eps"),
        ({"optimizer": {"peak": 1e-5, "weight_decay": 0.2}}, "optimizer.weight_decay"),
    ],
)
def test_everything_else_is_refused_by_name(root: Path, changes: dict[str, Any], key: str) -> None:
    _, state = trained(stage(root))
    with pytest.raises(ConfigError, match=rf"(?s)\n  {key}: .* -> .*{key} cannot change within a run\."):
        resumption(stage(root, **changes), NEWEST, STEPS, state, change=True)


@pytest.mark.parametrize("setting", ["loss", "long_documents"])
def test_a_source_keeps_how_it_is_read(root: Path, setting: str) -> None:
    _, state = trained(stage(root))
    value = {"loss": "responses", "long_documents": "drop"}[setting]
    other = stage(root, source(root, "text", 0.5), source(root, "code", 0.5, **{setting: value}))
    with pytest.raises(ConfigError, match=rf"mixture\[code\]\.{setting}: .* -> {value}"):
        resumption(other, NEWEST, STEPS, state, change=True)


def test_a_run_cannot_become_shorter_than_it_is(root: Path) -> None:
    _, state = trained(stage(root))
    with pytest.raises(ConfigError, match=r"tokens: 2560 -> 1024, and .* step 5 already(?s:.)*tokens=1280"):
        resumption(stage(root, steps=4), NEWEST, STEPS, state, change=True)


def test_precision_may_change_and_it_is_recorded(root: Path) -> None:
    _, state = trained(stage(root, precision={"compute": "bf16"}))
    resumed = resumption(stage(root, precision={"compute": "fp32"}), NEWEST, STEPS, state, change=False)
    assert resumed.new is not None
    assert resumed.new.settings == {"precision.compute": ["bf16", "fp32"]}


def test_where_states_lie_is_no_change_and_settings_that_came_later_are_none(root: Path) -> None:
    _, state = trained(stage(root))
    saved = state.config.model_dump()
    del saved["optimizer"]["host"], saved["optimizer"]["host_memory"], saved["precision"]["fp8_weights"]
    earlier = state.model_copy(update={"config": type(state.config).model_validate(saved)})
    for before in (state, earlier):
        config = stage(root, optimizer={**stage(root).optimizer.model_dump(), "host": "auto", "host_memory": 10**9})
        resumed = resumption(config, NEWEST, STEPS, before, change=False)
        assert resumed.new is None and resumed.changes == []


def test_no_document_is_seen_again_whatever_happens_to_its_sources_weight(root: Path) -> None:
    """Reweighted with a new source, one left out, and the one back: each goes through its epoch once."""
    config = stage(root, steps=40)
    seen, state = trained(config)
    assert sum(state.packs) == STEPS * SEQUENCES
    mixtures = [
        [source(root, "text", 0.2), source(root, "maths", 0.2), source(root, "code", 0.6)],
        [source(root, "text", 1.0)],
        [source(root, "code", 0.5), source(root, "text", 0.5)],
    ]
    firsts = [{"mixture[text].weight": [0.5, 0.2], "mixture[maths].weight": [0.0, 0.2]}]
    firsts += [{"mixture[text].weight": [0.2, 1.0], "mixture[code].weight": [0.6, 0.0]}]
    firsts += [{"mixture[code].weight": [0.0, 0.5], "mixture[text].weight": [1.0, 0.5]}]
    for number, (mixture, expected) in enumerate(zip(mixtures, firsts, strict=True), 1):
        config = stage(root, *mixture, steps=40)
        before = Counter(name for name, _ in seen)
        resumed = resumption(config, NEWEST, number * STEPS, state, change=True)
        assert resumed.new is not None and expected.items() <= resumed.new.settings.items()
        assert resumed.mixture.sequence == len(seen)
        new, state = trained(config, number * STEPS, STEPS if number < 3 else 2, resumed)
        seen += new
        # By the rule: the shares hold from the change on, and nothing before it is made up for.
        for each in mixture:
            name = Path(each["corpus"]).name
            given = sum(name == corpus for corpus, _ in new)
            assert abs(given - each["weight"] * len(new)) <= 1.5, (number, name)
            assert len(of(seen, name)) == before[name] + given
    whole: dict[str, Seen] = {}
    for name in ("text", "code", "maths"):
        whole[name], _ = trained(stage(root, source(root, name, 1.0), steps=40), steps=15)
        found = of(seen, name)
        epoch = {"text": 30, "code": 23, "maths": 9}[name]
        assert len(set(found[:epoch])) == min(epoch, len(found)), "seen again before its epoch was over"
        # Exact: the very order of a run that had this source alone.
        assert found == of(whole[name], name)[: len(found)]
    assert len(of(seen, "text")) > 30 and len(of(seen, "code")) > 23


def test_the_next_resumption_goes_on_in_the_changed_mixture(root: Path) -> None:
    _, state = trained(stage(root))
    config = stage(root, source(root, "text", 0.25), source(root, "code", 0.75))
    resumed = resumption(config, NEWEST, STEPS, state, change=True)
    whole, _ = trained(config, STEPS, 5, resumed)
    part, state = trained(config, STEPS, 2, resumed)
    again = resumption(config, NEWEST, STEPS + 2, state, change=True)
    assert again.new is None
    assert part + trained(config, STEPS + 2, 3, again)[0] == whole
    with TrainingLoader(config, MODEL, first_sequence=state.sequences, beginning=again.mixture) as loader:
        check_same_data(again, state.sequences, loader.data, NEWEST)
        swapped = replace(again, packs=again.packs[::-1])
        with pytest.raises(CheckpointError, match=r"its sources gave \[\d+, \d+\] of 28 sequences, where they give"):
            check_same_data(swapped, state.sequences, loader.data, NEWEST)


def test_a_source_is_known_by_its_documents(root: Path, tmp_path: Path) -> None:
    _, state = trained(stage(root))
    (tmp_path / "moved").symlink_to(root / "text")
    renamed = stage(root, source(tmp_path, "moved", 0.5), source(root, "code", 0.5))
    assert resumption(renamed, NEWEST, STEPS, state, change=False).new is None
    twice = stage(root, source(root, "text", 0.3), source(tmp_path, "moved", 0.2), source(root, "code", 0.5))
    with pytest.raises(ConfigError, match="source 'moved' holds the documents of source 'text'"):
        resumption(twice, NEWEST, STEPS, state, change=True)
    other = stage(root, source(root, "text", 0.4), source(root, "maths", 0.6) | {"name": "code"})
    with pytest.raises(ConfigError, match=r"maths holds other documents than when this run was begun(?s:.)*'code'"):
        resumption(other, NEWEST, STEPS, state, change=True)


def test_the_bound_on_epochs_counts_what_was_given_before(root: Path) -> None:
    _, state = trained(stage(root))
    config = stage(root, source(root, "text", 0.1), source(root, "code", 0.9, max_epochs=1))
    resumed = resumption(config, NEWEST, STEPS, state, change=True)
    assert resumed.new is not None and resumed.new.settings["mixture[code].max_epochs"] == [None, 1.0]
    with pytest.raises(DataError, match=r"'code' has .* tokens in max_epochs=1; the run needs"):
        trained(config, STEPS, 5, resumed)
    more = stage(root, source(root, "text", 0.1), source(root, "code", 0.9, max_epochs=2))
    trained(more, STEPS, 5, resumption(more, NEWEST, STEPS, state, change=True))


def test_another_form_of_states_is_changed_on_request_and_its_cost_is_said(root: Path) -> None:
    _, exact = trained(stage(root))
    narrow = stage(root, optimizer={"peak": 1e-5, "moments": "bfloat16"})
    with pytest.raises(ConfigError) as caught:
        resumption(narrow, NEWEST, STEPS, exact, change=False)
    said = str(caught.value)
    assert "optimizer.moments: float32 -> bfloat16" in said and "Add --change" in said
    assert "optimizer.moments: what was saved is rounded to bfloat16 once" in said
    _, kept = trained(narrow)
    with pytest.raises(ConfigError, match=r"optimizer\.moments: nothing is lost"):
        resumption(stage(root), NEWEST, STEPS, kept, change=False)
    plain = exact.model_dump(mode="json")
    for form in ("moments", "master", "gradients"):
        del plain["config"]["optimizer"][form]
    early = RunState.model_validate(plain, strict=True)
    assert resumption(stage(root), NEWEST, STEPS, early, change=False).new is None
    assert resumption(narrow, NEWEST, STEPS, early, change=True).new is not None


def test_a_bound_that_was_saved_by_its_former_name_is_the_same(root: Path) -> None:
    _, state = trained(stage(root, source(root, "text", 1.0, max_epochs=3)))
    plain = state.model_dump(mode="json")
    (section,) = plain["config"]["mixture"]
    section["epochs"] = section.pop("max_epochs")
    early = RunState.model_validate(plain, strict=True)
    same = stage(root, source(root, "text", 1.0, max_epochs=3))
    assert resumption(same, NEWEST, STEPS, early, change=False).new is None
    with pytest.raises(ConfigError, match=r"mixture\[text\].max_epochs: 3.0 -> 4.0"):
        resumption(stage(root, source(root, "text", 1.0, max_epochs=4)), NEWEST, STEPS, early, change=False)


def test_a_checkpoint_of_an_early_version_changes_all_but_the_mixture(root: Path) -> None:
    _, state = trained(stage(root))
    early = state.model_copy(update={"packs": []})
    assert resumption(stage(root, steps=20), NEWEST, STEPS, early, change=True).new is not None
    with pytest.raises(ConfigError, match="is of an earlier version"):
        resumption(stage(root, source(root, "text", 1.0)), NEWEST, STEPS, early, change=True)


def test_what_a_changed_run_json_says_of_the_data_is_refused(root: Path) -> None:
    config = stage(root, source(root, "text", 0.25), source(root, "code", 0.75))
    resumed = resumption(config, NEWEST, STEPS, trained(stage(root))[1], change=True)
    _, state = trained(config, STEPS, 2, resumed)
    (change,) = state.changes
    assert change.given is not None
    for update in (
        {"packs": [0, 0]},
        {"changes": [change.model_copy(update={"step": 99})]},
        {"changes": [change.model_copy(update={"given": change.given[:1]})]},
        {"changes": [change.model_copy(update={"given": [change.given[0].model_copy(update={"packs": 2**40})] * 2})]},
    ):
        with pytest.raises(CheckpointError, match=r"run\.json was changed"):
            resumption(config, NEWEST, STEPS + 2, state.model_copy(update=update), change=True)
