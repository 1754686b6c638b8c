"""Numbers and paths as people write them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_apriel.quantities import (
    counted,
    flop,
    parse_bytes,
    parse_count,
    parse_fraction,
    parse_path,
    size,
    three_digits,
)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("4M", 4_000_000), ("4Mi", 4_194_304), ("20B", 20_000_000_000), ("1.5K", 1500), ("16384", 16384), (7, 7),
        ("1_000", 1000), (" 2 T ", 2 * 10**12), (4e6, 4_000_000), ("4.35K", 4350), ("2e10", 2 * 10**10),
        ("100gi", 100 * 2**30),
    ],
)  # fmt: skip
def test_counts(written: object, number: int) -> None:
    assert parse_count(written) == number


@pytest.mark.parametrize(("written", "number"), [("5GB", 5 * 10**9), ("512MiB", 2**29), ("7", 7), ("1 kb", 1000)])
def test_bytes(written: object, number: int) -> None:
    assert parse_bytes(written) == number


@pytest.mark.parametrize(("written", "number"), [("10%", 0.1), ("0.1", 0.1), (1, 1.0), ("33.3%", 0.333), ("7 %", 0.07)])
def test_fractions(written: object, number: float) -> None:
    assert parse_fraction(written) == number


@pytest.mark.parametrize(
    ("parse", "written", "message"),
    [
        (parse_count, "4X", "'4X' is not a number with a unit; write for example 4Mi, 20B or 16384"),
        (parse_count, "1.5", "'1.5' is not a whole number"),
        (parse_count, -3, "-3 is not a number with a unit"),
        (parse_count, True, "True is not a number"),
        (parse_count, float("nan"), "nan is not a number"),
        (parse_count, None, "None is not a number"),
        (parse_bytes, "5 GX", "write for example 5GB, 512MiB or 1000000"),
        (parse_fraction, "ten", "'ten' is not a fraction; write for example 10% or 0.1"),
        (parse_fraction, "x%", "'x%' is not a fraction"),
        (parse_fraction, "110%", "'110%' is not between 0% and 100%"),
        (parse_fraction, "nan", "is not between"),
        (parse_fraction, "NaN%", "is not between"),
        (parse_path, "", "'' is not a path"),
        (parse_path, 3, "3 is not a path"),
        (parse_path, "a/${B", "malformed variable; write ${NAME} or ${NAME:-default}"),
        (parse_path, "a/${B:+c}", "malformed variable"),
        (parse_path, "~nobody_of_this_name/x", "there is no such home directory"),
        (parse_path, os.fsdecode(b"runs/\xff"), r"'runs/\udcff' is a path of bytes that are not UTF-8"),
    ],
)
def test_mistakes(parse: Callable[[object], object], written: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(written)
    assert message in str(caught.value)


def test_variables_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_ROOT", "/data/x")
    monkeypatch.setenv("EMPTY_ROOT", "")
    monkeypatch.delenv("MISSING_ROOT", raising=False)
    assert parse_path("${SOME_ROOT}/a/${SOME_ROOT:-other}") == Path("/data/x/a/data/x")
    assert parse_path("${MISSING_ROOT:-runs}/a") == Path("runs/a")
    monkeypatch.setenv("ODD_ROOT", os.fsdecode(b"/secret\xff"))
    with pytest.raises(ValueError, match=r"^'\$\{ODD_ROOT\}/a' is a path of bytes that are not UTF-8"):
        parse_path("${ODD_ROOT}/a")
    assert parse_path("${EMPTY_ROOT:-runs}/a") == Path("runs/a")
    assert parse_path("$SOME_ROOT/a") == Path("$SOME_ROOT/a")
    assert parse_path("~/a") == Path.home() / "a"
    for name in ("MISSING_ROOT", "EMPTY_ROOT"):
        with pytest.raises(ValueError, match=f"the environment variable {name}, which is not set; export {name}="):
            parse_path(f"${{{name}}}/a")


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0 bytes"), (1, "1 byte"), (1023, "1,023 bytes"), (1024, "1.00 KiB"), (1.5 * 2**20, "1.50 MiB"),
        (9.996 * 2**20, "10.0 MiB"), (2**30 - 1, "1,024.0 MiB"), (73.6 * 2**30, "73.6 GiB"), (3 * 2**50, "3,072.0 TiB"),
        (-(2**21), "-2.00 MiB"),
    ],
)  # fmt: skip
def test_sizes_are_in_a_unit_of_which_there_is_one(number: float, written: str) -> None:
    assert size(number) == written


def test_operations_and_other_numbers_keep_their_first_digits() -> None:
    assert (flop(92_200_000_000), flop(412), flop(1.234e6)) == ("92.2 GFLOP", "412 FLOP", "1.23 MFLOP")
    assert [three_digits(number) for number in (0.01234, 1.234, 99.9, 99.96, 123_456.7, 0)] == [
        "0.0123", "1.23", "99.9", "100", "123,457", "0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "image"), "0 images"), (counted(1, "image"), "1 image"), (counted(2, "image"), "2 images"),
        (counted(12345, "usable image"), "12,345 usable images"), (counted(1, "entry", "entries"), "1 entry"),
        (counted(3, "entry", "entries"), "3 entries"), (counted(1, "layout fits", "layouts fit"), "1 layout fits"),
        (counted(1.0, "epoch"), "1 epoch"), (counted(2.5, "epoch"), "2.5 epochs"), (counted(2.0, "epoch"), "2 epochs"),
    ],
)  # fmt: skip
def test_one_of_something_is_not_many(said: str, expected: str) -> None:
    assert said == expected
