"""How a rank finds its device and the others, before any group exists."""

from __future__ import annotations

import socket

import pytest
import torch

from megatron_apriel.errors import ConfigError, ExitCode, TransientError, run_command
from megatron_apriel.parallel import groups


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A host with GPUs; the indices that were chosen."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    return chosen


def test_a_rank_takes_the_device_of_its_place_on_the_host(devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_LOCALID", "3")
    groups._take_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    groups._take_device()
    assert devices == [3, 1]


def test_a_device_that_slurm_bound_to_the_rank_is_its(devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    groups._take_device()
    assert devices == [0]
    # torchrun binds nothing, so there it is one process too many.
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ConfigError, match="rank 3 of this host has no device"):
        groups._take_device()


def test_a_port_that_is_taken_may_be_free_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = str(server.getsockname()[1])
        for name, value in {
            "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)

        def main() -> None:
            with (
                pytest.raises(TransientError, match=rf"could not meet the others at 127.0.0.1:{port}: .*use"),
                groups.joined(),
            ):
                pass
            raise TransientError("x")

        assert run_command(main) == ExitCode.TRY_AGAIN == 76
