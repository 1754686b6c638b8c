"""What a person writes for a model is taken for a directory or an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apriel.errors import CheckpointError, ConfigError
from megatron_apriel.generate.opening import open_model
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.testing.chat_servers import ScriptedServer, streamed


def test_an_address_is_a_server() -> None:
    with ScriptedServer(streamed({"content": "x"})) as server, open_model(server.address) as model:
        assert isinstance(model, ServerModel) and model.name == "scripted"


@pytest.mark.parametrize("place", ["localhost:8000", "10.0.0.1:80/v1", "ftp://x"])
def test_what_looks_like_an_address_is_not_looked_for_as_a_directory(place: str) -> None:
    with pytest.raises(ConfigError, match="is no server's address"):
        open_model(place)


def test_a_directory_may_have_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:3").mkdir()
    with pytest.raises(CheckpointError, match="run:3 holds no checkpoint"):
        open_model("run:3")
