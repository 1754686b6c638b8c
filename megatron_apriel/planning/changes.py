"""What a run may change when it resumes: its settings compared with its checkpoint's, and where its data continue.

A setting that says what is trained on what, in which order, stays the same, or the run would mean something else. Some
of them may change when it is asked for: the learning rate and its schedule, the length, and the weights of the
mixture, with sources that come and go. What follows from a change is stated, and exact:

- a step has the rate that the new schedule gives it, as if the run had had that schedule from its first step;
- the mixture begins anew: shares hold from the change on, and what came before is not made up for;
- every source continues behind the last pack that it gave. A new one begins at its first pack, and one that was left
  out and comes back continues where it was, so that no document is seen again before its source's epoch is over.

A source is known by its documents, not by its name or place: by the fingerprint of its corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_apriel.config.choices import MOMENTS
from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.config.machine_sections import PrecisionSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.mixture import RUN_BEGINS, Beginning
from megatron_apriel.data.loading.stage_data import StageData
from megatron_apriel.errors import CheckpointError, ConfigError, printable
from megatron_apriel.formats.run_record import (
    ChangeRecord,
    GivenRecord,
    RunState,
    SavedSource,
    change_in_words,
)
from megatron_apriel.planning.state_forms import FORMS

SAME_ON_RESUME = ("stage", "sequence_length", "batch_tokens", "tokens", "mixture", "train", "optimizer", "seed")
"""Settings that say what is trained on what, in which order: a resumed run has the same, but for changes asked for."""
CHANGEABLE = {"tokens", *(f"optimizer.{name}" for name in ("peak", "minimum", "warmup", "decay", *FORMS))}
"""Of these, what may be changed within a run, besides the mixture's weights."""
FREE = {f"optimizer.{name}" for name in ("host", "host_memory")}
"""Of these, what says where something lies, and changes no number."""
SAID_WHERE_CHANGED = ("precision",)
"""Settings that may always change, and whose change is said and recorded."""

_FREE_OF_SOURCE = {"corpus", "name", "weight", "max_epochs"}
"""What a source may have otherwise; the rest of its settings say how its documents are packed and what they teach."""


@dataclass(frozen=True)
class Difference:
    """A setting that differs from the checkpoint's.

    Attributes:
        key: its dotted name; the items of a mixture are called by their names, ``mixture[text].weight``.
        then, now: plain values.
        changeable: whether it may change within a run.
    """

    key: str
    then: Any
    now: Any
    changeable: bool

    def __str__(self) -> str:
        return change_in_words(self.key, self.then, self.now)


@dataclass(frozen=True)
class Resumption:
    """What a run continues with.

    Attributes:
        changes: of the run's settings, in order, the one that is made now among them.
        new: the one that is made now.
        mixture: where the present mixture begins.
        corpora: fingerprints that the corpora of the mixture must have.
        packs: that each source of the mixture has given; none where the checkpoint does not say it.
        peaks: learning rates by which the checkpoint's optimizer knows its groups, to those of now.
    """

    changes: list[ChangeRecord]
    new: ChangeRecord | None
    mixture: Beginning
    corpora: list[str]
    packs: tuple[int, ...]
    peaks: Mapping[float, float]


def resumption(config: StageConfig, newest: Path, step: int, state: RunState, change: bool) -> Resumption:
    """Compare the stage with its newest checkpoint.

    Args:
        config: of the stage now.
        newest: the checkpoint.
        step: that it is of.
        state: the run's in it.
        change: whether what may change within a run was asked to.

    Raises ConfigError where a setting differs that must not, or that may and was not asked to; CheckpointError where
    what the checkpoint says of its data cannot be.
    """
    _check_positions(newest, step, state)
    then, now = state.config.model_dump(), config.model_dump(mode="json")
    then["optimizer"] = saved_forms(then) | _optimizer(then)
    if config.optimizer.moments == "auto" and then["optimizer"]["moments"] in MOMENTS:
        # Chosen when the run began.
        now["optimizer"]["moments"] = then["optimizer"]["moments"]
    differences = list(_settings(then, now))
    given = None
    # Names are free; so where they differ, the documents say which source is which.
    if list(map(_compared, state.config.mixture)) != list(map(_compared, config.mixture)):
        in_mixture, given = _mixture_differences(config, newest, state)
        differences += in_mixture
    _refuse(differences, config, newest, change)
    if config.steps < step and then.get("tokens") != config.tokens:
        length = "; ".join(str(each) for each in differences if each.key in ("epochs", "tokens"))
        least = f"tokens={step * config.batch_tokens}"
        raise ConfigError(
            f"{length}, and {newest} is of step {step} already.", "A run cannot become shorter than it is.",
            f"Give more epochs, or epochs=null and at least {least}." if config.epochs else f"Give at least {least}.",
        )  # fmt: skip
    # Settings that the version of then did not have are as by default.
    before = {"precision": PrecisionSection().model_dump(mode="json") | (then.get("precision") or {})}
    differences += _under(SAID_WHERE_CHANGED, before, now)
    new = None
    if differences:
        settings = {difference.key: [difference.then, difference.now] for difference in differences}
        new = ChangeRecord(step=step, settings=settings, given=given)
    changes = [*state.changes, *([new] if new is not None else [])]
    begun = next((each for each in reversed(changes) if each.given is not None), None)
    mixture, corpora, packs = RUN_BEGINS, state.corpora, tuple(state.packs)
    if begun is not None and begun.given is not None:
        sources = begun.given[: len(config.mixture)]
        mixture = Beginning(begun.step * config.sequences_per_step, tuple(source.packs for source in sources))
        corpora = [source.corpus for source in sources]
        packs = mixture.packs if begun is new else packs
    return Resumption(changes, new, mixture, corpora, packs, _peaks(then, config))


def saved_forms(then: Mapping[str, Any]) -> dict[str, Any]:
    """How a run kept its optimizer's numbers, by its saved settings; a version that did not say it had them exact."""
    return {form: _optimizer(then).get(form, "float32") for form in FORMS}


def _optimizer(then: Mapping[str, Any]) -> dict[str, Any]:
    section = then.get("optimizer")
    return dict(section) if isinstance(section, Mapping) else {}


def _settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Differences in what must stay the same, the mixture left out; of a length in epochs these too."""
    for difference in _under([name for name in SAME_ON_RESUME if name != "mixture"], then, now):
        if difference.key == "tokens":
            yield from _under(["epochs"], then, now)
        if difference.key not in FREE:
            yield replace(difference, changeable=difference.key in CHANGEABLE)


def _under(names: Sequence[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    before, after = (dict(_flat({name: config.get(name) for name in names})) for config in (then, now))
    for key in {**after, **before}:
        if before.get(key) != after.get(key):
            yield Difference(key, before.get(key), after.get(key), changeable=True)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _compared(source: SourceSection | SavedSource) -> tuple[Any, ...]:
    return source.label, source.weight, source.max_epochs, _kept(source)


def _kept(source: SourceSection | SavedSource) -> dict[str, Any]:
    """What a source must keep; settings that the version of then did not have are as by default."""
    settings = {**_source_defaults(), **source.model_dump(mode="json")}
    return {name: value for name, value in settings.items() if name not in _FREE_OF_SOURCE}


def _source_defaults() -> dict[str, Any]:
    return SourceSection(corpus=Path()).model_dump(mode="json")


def _mixture_differences(
    config: StageConfig, newest: Path, state: RunState
) -> tuple[list[Difference], list[GivenRecord] | None]:
    """Differences between mixtures, and how far the run is in each source, those of now first; None without any."""
    then = state.config.mixture
    if not len(then) == len(state.corpora) == len(state.packs):
        raise ConfigError(
            f"{newest} does not say how far it is in each source of its mixture: it is of an earlier version.",
            "Where another mixture would begin is not known.",
            "Resume with the mixture as it was; the next checkpoint says it.",
        )
    former = [_given(*row) for row in zip(then, state.corpora, state.packs, strict=True)]
    former += _last_given(state)[len(then) :]
    corpora = [Corpus.open(section.corpus).fingerprint for section in config.mixture]
    matches: list[int | None] = []
    differences: list[Difference] = []
    given: list[GivenRecord] = []
    for section, corpus in zip(config.mixture, corpora, strict=True):
        match = _match(section, corpus, former, matches, newest)
        matches.append(match)
        before = then[match] if match is not None and match < len(then) else None
        differences += _of_source(section, before, former[match] if match is not None else None)
        given.append(_given(section, corpus, former[match].packs if match is not None else 0))
    left_out = [place for place in range(len(former)) if place not in matches]
    for place in left_out:
        if place < len(then):
            differences.append(Difference(_key(then[place].label, "weight"), then[place].weight, 0.0, changeable=True))
    kept = [match for match in matches if match is not None and match < len(then)]
    if kept != sorted(kept):
        orders = [[then[place].label for place in places] for places in (sorted(kept), kept)]
        differences.append(Difference("mixture order", orders[0], orders[1], changeable=True))
    return differences, [*given, *(former[place] for place in left_out)] if differences else None


def _of_source(section: SourceSection, then: SavedSource | None, former: GivenRecord | None) -> Iterator[Difference]:
    """Differences of one source: ``then`` in the mixture that is changed, ``former`` if the run ever took from it."""
    weight = then.weight if then is not None else 0.0
    if section.weight != weight:
        yield Difference(_key(section.label, "weight"), weight, section.weight, changeable=True)
    if then is not None and section.max_epochs != then.max_epochs:
        yield Difference(_key(section.label, "max_epochs"), then.max_epochs, section.max_epochs, changeable=True)
    settings = _kept(section)
    before = {**_source_defaults(), **former.settings} if former is not None else settings
    for name in settings:
        if before[name] != settings[name]:
            yield Difference(_key(section.label, name), before[name], settings[name], changeable=False)


def _key(label: str, name: str) -> str:
    return f"mixture[{printable(label)}].{name}"


def _given(source: SourceSection | SavedSource, corpus: str, packs: int) -> GivenRecord:
    return GivenRecord(name=source.label, corpus=corpus, settings=_kept(source), packs=packs)


def _last_given(state: RunState) -> list[GivenRecord]:
    return next((change.given for change in reversed(state.changes) if change.given is not None), [])


def _match(
    section: SourceSection, corpus: str, former: list[GivenRecord], taken: list[int | None], newest: Path
) -> int | None:
    """Which of the run's sources a section means: that of the same documents, before others that of the same name."""
    label = printable(section.label)
    same = [place for place, source in enumerate(former) if source.corpus == corpus]
    free = sorted((former[place].name != section.label, place) for place in same if place not in taken)
    if free:
        return free[0][1]
    if same:
        raise ConfigError(
            f"source {label!r} holds the documents of source {printable(former[same[0]].name)!r}, which the run of "
            f"{newest} has as well.",
            "Documents that were seen already would be seen again.",
            f"Leave {label!r} out, and give the other one a larger weight.",
        )
    if any(source.name == section.label for source in former):
        raise _other_documents(section.corpus, label)
    return None


def _other_documents(corpus: Path, label: str) -> ConfigError:
    """For a corpus that is not the one that the run had under this name."""
    return ConfigError(
        f"{corpus} holds other documents than when this run was begun.",
        "Sequences that were read already would come again, and others never.",
        f"Bring back the corpus as it was; or give this one another name than {printable(label)!r} and add --change,"
        " which leaves the former source out.",
    )


def check_same_data(resumed: Resumption, sequences: int, data: StageData, newest: Path) -> None:
    """The corpora are those of the run, and its sources have given what its checkpoint says.

    Raises ConfigError for other corpora, CheckpointError for another position in them.
    """
    for source, fingerprint in zip(data.sources, resumed.corpora, strict=False):
        if source.corpus.fingerprint != fingerprint:
            raise _other_documents(source.corpus.path, source.label)
    given = data.mixture.packs_before(sequences)
    if resumed.packs and given != resumed.packs:
        raise _not_its_data(
            newest, f"its sources gave {list(resumed.packs)} of {sequences} sequences, where they give {list(given)}"
        )


def _not_its_data(newest: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{newest} says that {found}.",
        "Its run.json was changed.",
        f"Remove or rename {newest} to resume from the checkpoint before it.",
    )


def what_is_lost(key: str, now: Any) -> str | None:
    """What a change of the form of the optimizer's numbers costs; None for other settings."""
    if key == "optimizer.gradients":
        return "nothing that was saved changes; from now on a step's sums are rounded to another form"
    if key not in {f"optimizer.{form}" for form in FORMS}:
        return None
    if now == "float32":
        return "nothing is lost, and what was rounded before stays so"
    return f"what was saved is rounded to {now} once, as it is read; what that takes away does not come back"


def _refuse(differences: list[Difference], config: StageConfig, newest: Path, change: bool) -> None:
    fixed = [difference.key for difference in differences if not difference.changeable]
    if not differences or (change and not fixed):
        return
    may = [difference.key for difference in differences if difference.changeable]
    why, way = "Resuming would silently change what the run means.", "Add --change to change that within the run"
    if fixed:
        why = f"{', '.join(fixed)} cannot change within a run." + (f" {', '.join(may)} can." if may else "")
        way = "Take back what cannot change" + (", and add --change for the rest" if may else "")
    lost = [f"{each.key}: {lost}" for each in differences if (lost := what_is_lost(each.key, each.now)) is not None]
    raise ConfigError(
        "\n  ".join([f"{newest} was made with other settings:", *map(str, differences), *lost]),
        why,
        f"{way}; or begin a new stage: init_from={newest} and another output than {config.output}.\n"
        "  A new stage takes the weights only: optimizer state and the position in the data are lost.",
    )


def _check_positions(newest: Path, step: int, state: RunState) -> None:
    """Every sequence was of one source, and no change was made after the checkpoint or of more than it had."""
    given, packs = _last_given(state), state.packs
    of_sources = sum(packs) + sum(source.packs for source in given[len(packs) :])
    bad = any(change.step > step for change in state.changes) or any(
        source.packs > now for source, now in zip(given, packs, strict=False)
    )
    if bad or (given and len(given) < len(packs)) or (packs and of_sources != state.sequences):
        raise _not_its_data(newest, f"its sources gave {of_sources} sequences, and it has {state.sequences}")


def _peaks(then: Mapping[str, Any], config: StageConfig) -> dict[float, float]:
    before = _optimizer(then).get("peak")
    if not isinstance(before, int | float):
        return {}
    factors = [getattr(config.train, component) for component in config.trained_components]
    return {before * factor: config.optimizer.peak * factor for factor in factors}
