"""docs/data.md says of every field and every shape what the tables of the reader say, in their words."""

from pathlib import Path

from megatron_apriel.data.raw.fields.envelopes import ROLES
from megatron_apriel.data.raw.fields.meanings import FIELDS, MAPPABLE
from megatron_apriel.data.raw.fields.refused import REFUSED
from megatron_apriel.data.raw.fields.value_kinds import ALONE, BESIDE_TURNS, CUT, DISLIKED, THROWN
from megatron_apriel.data.raw.records.context import CONTEXT, CONTEXT_ENDINGS, CONTEXT_OF, NO_CONTEXT
from megatron_apriel.data.raw.records.conversion import FORMATS
from megatron_apriel.data.raw.records.pair_shape import ANSWERS_TO
from megatron_apriel.data.raw.records.shapes import SHAPES

PAGE = (Path(__file__).parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
KINDS = {
    "any": "", "true": ", unless it is false", "yes": ", if it is true", "no": ", if it is false",
    "marks": ", if it holds marks", "split": ", if it names one", "media": ", unless it is a number",
    "pages": ", unless it is a number or an address", "set": ", unless it says what is meant without it",
    "denied": ", if it is false or a word for it, beside turns", "flags": ", if it lists true and false or numbers",
    "switched": ", unless it is false or chooses by itself",
    "cut": ", if it is a reason of those below", "thrown": ", if it is a verdict of those below",
    "cut off": ", if it is true, beside turns",
    "disliked": ", if it is a word of those below, or a number below 0",
    "not taken": ", if it is `reject` or `ignore`",
    "error": ", unless it is false or a word for none",
    "nothing": ", if it is 0 alone or a list of it, beside turns",
    "words": ", if it is a text of several words, beside turns",
    "no success": ", if it is none of 200 to 299",
}  # fmt: skip


def test_every_rule_is_of_a_kind_that_is_known() -> None:
    assert {rule.values for rule in REFUSED} == {*ALONE, *BESIDE_TURNS} == set(KINDS)


def names(text: str) -> str:
    return " ".join(f"`{name}`" for name in text.split())


def table(*rows: tuple[str, ...]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def test_the_table_of_shapes():
    assert tuple(shape.name for shape in SHAPES) == FORMATS
    assert table(*((f"`{shape.name}`", f"`{shape.example}`", shape.published) for shape in SHAPES)) in PAGE


def test_the_table_of_fields():
    assert table(*((row.level, names(row.spelled), row.becomes) for row in FIELDS)) in PAGE


def test_the_table_of_refusals():
    rows = []
    for rule in REFUSED:
        named = [names(rule.names)] if rule.names else []
        named += [f"with {names(rule.words)} in its name"] if rule.words else []
        named[-1:] = [f"{named[-1]}, without {names(rule.unless)}"] if rule.unless else named[-1:]
        where = ", ".join(rule.levels.split()) or "anywhere"
        rows.append((where, f"{'; '.join(named) or 'any other'}{KINDS[rule.values]}", rule.reason))
    assert table(*rows) in PAGE


def test_context_and_roles():
    for words in (CUT, THROWN, DISLIKED):
        assert names(words) in " ".join(PAGE.split())
    for words in (CONTEXT, CONTEXT_ENDINGS, NO_CONTEXT, *(words for pair in CONTEXT_OF for words in pair)):
        assert names(words) in " ".join(PAGE.split())
    for ours, theirs in ROLES.items():
        assert f"| `{ours}` | {names(theirs)} |\n" in PAGE


def test_answers_are_fields_of_the_table():
    """The answers that a prompt may have, and the fields that are said to be answers, are the same."""
    (answers,) = (set(row.names) for row in FIELDS if "after a prompt" in row.becomes)
    (prompts,) = (set(row.names) for row in FIELDS if "where an answer stands beside it" in row.becomes)
    assert {name for names in ANSWERS_TO.values() for name in names} == answers
    assert set(ANSWERS_TO) == prompts and answers | prompts <= set(MAPPABLE)
