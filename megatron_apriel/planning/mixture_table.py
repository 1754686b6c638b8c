"""The table of a stage's sources, which the dry run prints and the run at its start, from the same count."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.sources import Source
from megatron_apriel.data.loading.stage_data import StageData
from megatron_apriel.quantities import counted
from megatron_apriel.tables import Table, figures

NOT_KNOWN = "not known"


def mixture_table(data: StageData) -> Table:
    """What a stage takes from each source, and how much of its sequences is padding."""
    config, mixture = data.config, data.mixture
    table = _empty()
    for place, source in enumerate(data.sources):
        tokens, passes = mixture.tokens_used(place), mixture.packs_used[place] / source.plan.num_packs
        _add(table, config, place, f"{tokens:,}", f"{passes:.2f}", source)
    taken = sum(map(mixture.tokens_used, range(len(data.sources))))
    room = sum(mixture.packs_used) * config.sequence_length
    table.caption = (
        f"tokens: without padding; documents, sequences and padding: of one pass. In all"
        f" {counted(sum(mixture.packs_used), 'sequence')} of {config.sequence_length:,},"
        f" {1 - taken / room:.2%} of them padding."
    )
    return table


def unfinished_table(config: StageConfig, opened: Sequence[Source]) -> Table:
    """The same where some corpora are not there: without what only all of them together show."""
    table = _empty()
    by_label = {source.label: source for source in opened}
    for place, section in enumerate(config.mixture):
        share = None if config.tokens is None else round(config.steps * config.batch_tokens * section.weight)
        tokens = NOT_KNOWN if share is None else f"{share:,}"
        _add(table, config, place, tokens, NOT_KNOWN, by_label.get(section.label))
    table.caption = (
        "not counted, since corpora are missing. tokens: with padding; documents, sequences and padding: of one pass"
    )
    return table


def _empty() -> Table:
    headings = ("source", "share", "tokens", "passes", "documents", "sequences", "padding", "loss on", "corpus")
    table = figures(*headings, words=(0, 7, 8), title="Mixture")
    table.caption_justify = "left"
    return table


def _add(table: Table, config: StageConfig, place: int, tokens: str, passes: str, source: Source | None) -> None:
    section = config.mixture[place]
    of_pass = [NOT_KNOWN] * 3
    if source is not None:
        of_pass = [f"{len(source.corpus):,}", f"{source.plan.num_packs:,}", f"{source.plan.padding:.2%}"]
    table.add_row(section.label, f"{section.weight:.1%}", tokens, passes, *of_pass, section.loss, str(section.corpus))
