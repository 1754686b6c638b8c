"""The documentation lists every setting, and is the one made from the schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apriel.config.fields import all_settings
from megatron_apriel.config.reference import main, table, updated
from megatron_apriel.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text, "run: python -m megatron_apriel.config.reference --update docs/configuration.md"


def test_every_setting_has_a_meaning() -> None:
    for name, field in all_settings():
        assert field.description, name
        assert "None" not in field.description, name


def test_a_choice_is_listed_with_every_word_of_it() -> None:
    """Those of a union as well."""
    rows = {cells[1].strip(): cells[2].strip() for line in table().split("\n") if (cells := line.split("|"))}
    assert rows["`optimizer.moments`"] == "`float32`, `bfloat16`, `int8`, `auto`"
    assert rows["`optimizer.master`"] == "`float32`, `24bit`"


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == table()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- settings: begin -->\nold\n<!-- settings: end -->\nafter\n")
    assert main(["--update", str(page)]) == 0
    assert (
        page.read_text().startswith("before\n<!-- settings: begin -->\n| setting |")
        and "\nold\n" not in page.read_text()
    )
    with pytest.raises(ConfigError, match="has no marks"):
        updated("nothing here")
