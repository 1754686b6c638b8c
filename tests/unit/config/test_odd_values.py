"""Whatever stands in a stage's file or overrides: the stage loads, or is refused in the project's words by its line."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from megatron_apriel.config.explain import MOST_SHOWN
from megatron_apriel.config.fields import all_settings
from megatron_apriel.config.load import load_stage, to_yaml
from megatron_apriel.config.yaml_text import MOST_BYTES, MOST_DEEP, MOST_VALUES, parse_yaml
from megatron_apriel.errors import ConfigError
from megatron_apriel.testing.limits import check_cost, measured, refused_within

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "cpt_stage1.yaml"
SETTINGS = [name.replace("[]", ".0") for name, _ in all_settings()]
NUMBERS = [
    "1e999999999", "-1e999999999", "9" * 20, "9" * 5000, "-" + "9" * 400, "1e300B", "1e999B", "1E400M", ".nan", ".inf",
    "-.inf", "-0", "-0.0", "-1", "0", "1__0", "0x10", "1:30", "5e-324", "1.8e308", "1e400", "9223372036854775808",
    "1.0000000000000000000000000000001K", "nan%", "-5%", "١٢", "٣", "²", "010", "true", "null",
]  # fmt: skip
TAGGED = [
    "!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]",
    "!!timestamp 2020-01-01", "!!timestamp x", "!!int x", "!!int 3", '!!float ""', "!!bool maybe", "!!null x",
    "!!str 3", "!!str [1]", "!!map []", "!!seq {}", "!foo x", "! x", "!<tag:x> y", "!!value =", "2020-01-01",
]  # fmt: skip
STRUCTURES = [
    "[]", "{}", "[[]]", "[{}]", "{a: b}", "<<", "{<<: 1}", "{<<: [1]}", "{<<: {a: 1}}", "{<<: {a: 1}, <<: {b: 1}}",
    "&a *a", "&a [*a]", "&a {a: *a}", "&a {<<: *a}", "*a", "[&a 1, &a 2]", "? a", "? [a]\n: b", "{? : }", "{[a]: b}",
    "{{}: 1}", "{null: 1}", "{1: 2}", "{true: 1}", "{: 1}", '{"": 1}', "--- 1\n--- 2", "...", "%YAML 1.1\n---\n1",
    "%YAML 1." + "9" * 5000 + "\n---\n1", "%TAG ! x\n---\n1", "@", "`", "\"", "'", "\t1", "- 1", "",
]  # fmt: skip
TEXTS = [
    r'"\0"', r'"\x1b[31m"', r'"\ud800"', r'"\UFFFFFFFF"', r'"\U00110000"', r'"a\nb"', '"\udcff"', "\x00", "\ufeff1",
    "\x85", "\u2028", "\u202e", "''", '" "', "x" * 70_000, "balanced", "last 5", "last ٣", "last " + "9" * 5000,
    "equispaced 99999999", "${X", "${}", "${A:-${B}}", "${NOT_SET_HERE}", "~nobody_of_this_name/x", "..", r'"a\0b"',
]  # fmt: skip


def outcome(path: Path, *overrides: str) -> str | None:
    """The message of a refusal, which has the project's own words only; None for a stage that loads."""
    try:
        config = load_stage(path, overrides)
    except ConfigError as error:
        text = str(error)
        text.encode()
        assert len(text) < 10_000
        for foreign in ("Input should", "Value error", "pydantic", "another kind of value", "Traceback"):
            assert foreign not in text
        return text
    to_yaml(config).encode()
    return None


@pytest.mark.parametrize("values", [NUMBERS, TAGGED, STRUCTURES, TEXTS], ids=["numbers", "tags", "structures", "texts"])
def test_every_setting_takes_or_refuses_every_value(values: list[str]) -> None:
    drawn = random.Random(0)
    for setting in SETTINGS:
        for value in drawn.sample(values, 8):
            message = outcome(EXAMPLE, f"{setting}={value}")
            assert message is None or "override" in message or str(EXAMPLE) in message


@pytest.mark.parametrize("value", [*NUMBERS, *TAGGED, *STRUCTURES, *TEXTS], ids=repr)
def test_a_file_with_an_odd_value_is_refused_by_its_line(value: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    text = EXAMPLE.read_text(encoding="utf-8")
    file.write_text(f"{text}\nodd: {value}\n", encoding="utf-8", errors="surrogatepass")
    message = outcome(file)
    assert message is not None
    assert re.search(r"line \d+|cannot be read: 'utf-8'", message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.99999999999999999999.weight=1", "mixture has no item 99999999999999999999"),
        (f"mixture.{'9' * 5000}.weight=1", "mixture has no item 9999"),
        ("mixture.-1.weight=1", "mixture has no item -1"),
        ("mixture.²=1", "mixture has no item ²"),
        ("mixture.\u0660.weight=1", "mixture has no item \u0660"),
        ("a." * 3000 + "x=1", "names 3,001 places in one another"),
        ("tokens=9223372036854775808", "is beyond the whole numbers of 64 bits"),
        ("tokens=9e18K", "is beyond the largest whole number"),
        ("tokens='1" + " " * 100_000 + "!'", "is not a number with a unit"),
        ("tokens='" + "9" * 5000 + "'", "is not a number with a unit"),
        ("seed='9223372036854775808'", "It must be at most 9223372036854775807"),
        ("optimizer.minimum=\u0660.\u0661", "is not a fraction"),
        ("checkpoint.keep=last ٣", "is no policy"),
        ("checkpoint.keep=equispaced 999999999", "It must be at most 10000"),
        (r'init_from="a\0b"', "it holds a zero byte"),
        (r'mixture.0.name="\ud800"', "holds half of a surrogate pair"),
        ("parallel={<<: 3}", "'<<' takes a section, or a list of sections, to merge in"),
        ("stage.\nConfigError: forged=1", r"which has no part '\nConfigError: forged'"),
    ],
)
def test_odd_overrides_say_what_is_wrong(override: str, message: str) -> None:
    found = outcome(EXAMPLE, override)
    assert found is not None and message in found


def test_thousands_of_mistakes_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    text = EXAMPLE.read_text(encoding="utf-8") + "".join(f"no_setting_{number}: 1\n" for number in range(8000))
    file.write_text(text, encoding="utf-8")
    message = refused_within(load_stage, file)
    assert "has 8,000 mistakes" in message and f"and {8000 - MOST_SHOWN:,} more" in message
    assert len(message.splitlines()) == MOST_SHOWN + 3


def test_merged_sections_count_behind_what_is_said_beside_them() -> None:
    text = "base: &base {a: 1, b: 1}\nmore: &more {b: 2, c: 2}\nboth: {<<: [*base, *more], a: 3}\n"
    value, lines = parse_yaml(text, "here")
    assert value["both"] == {"a": 3, "b": 1, "c": 2}
    assert (lines["both", "a"], lines["both", "b"], lines["both", "c"]) == (3, 1, 2)


def laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int, width: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * width)}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(30, 10), rf"more than {MOST_VALUES:,} values"),
        (merges(30, 10), rf"more than {MOST_VALUES:,} values"),
        ("a: " + "[" * 100_000, f"more than {MOST_DEEP} deep"),
        ("a: " + "{a: " * 50_000, f"more than {MOST_DEEP} deep"),
        ("a:\n" + "".join(f"{' ' * depth}- \n" for depth in range(1, 600)), f"more than {MOST_DEEP} deep"),
        ("a: [" + "1," * 120_000 + "]", rf"more than {MOST_VALUES:,} values"),
        ("a: " + "9" * 250_000, "a number of 250,000 letters"),
        ("a: '" + "x" * MOST_BYTES + "'", "at most 262,144 are read"),
        ("\n".join(f"a{n}: &b{n} {'[' * 40}{f'*b{n - 1}' if n else 1}{']' * 40}" for n in range(400)), "50 deep"),
    ],
    ids=["aliases", "merges", "lists", "sections", "blocks", "wide", "digits", "long", "aliases in lists"],
)
def test_texts_that_grow_are_refused_before_they_do(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(text, encoding="utf-8")
    assert message in refused_within(load_stage, file)


def test_a_text_of_the_allowed_size_costs_little(tmp_path: Path) -> None:
    text = "a: [" + ", ".join(["{b: 1}"] * (MOST_VALUES // 4)) + "]\nc: '" + "x" * 200_000 + "'\n"
    check_cost(measured(parse_yaml, text, "here"), seconds=4)


@pytest.mark.parametrize("kind", ["sparse", "endless", "directory"])
def test_what_is_no_small_file_is_not_read(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    if kind == "sparse":
        with file.open("wb") as stream:
            stream.truncate(2**40)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    assert "cannot be read" in refused_within(load_stage, file)
