"""How a rank finds its device and the others, before any group exists; and what goes with the groups."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from megatron.core import parallel_state

from megatron_apriel.errors import ConfigError, ExitCode, TransientError, run_command
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.ranks import run_ranks


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "has RANK='0', and lacks WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "", "WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "lacks RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "lacks MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "not one of WORLD_SIZE=2 ranks"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK='x' is not one of"),
        ({"RANK": "0", "WORLD_SIZE": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "WORLD_SIZE='0' is no number"),
    ],
)
def test_words_of_a_launcher_that_are_not_all_there(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(groups.dist, "init_process_group", lambda *_, **__: pytest.fail("the ranks were waited for"))
    with pytest.raises(ConfigError, match=message):
        groups._join()


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


def meets(rank: int, answers: multiprocessing.SimpleQueue[float]) -> None:
    os.environ |= {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "3", "SLURM_LOCALID": str(rank)}
    with groups.joined():
        number = torch.tensor([2.0**rank])
        torch.distributed.all_reduce(number)
        answers.put(number.item())


def test_ranks_of_a_slurm_step_meet_though_their_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        ranks = [context.Process(target=meets, args=(rank, answers)) for rank in range(3)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        assert [process.exitcode for process in ranks] == [0] * 3
        assert {answers.get() for _ in ranks} == {7.0}


def test_one_task_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "MASTER_ADDR": "", "MASTER_PORT": ""}.items():
        monkeypatch.setenv(name, value)
    with groups.joined():
        assert torch.distributed.get_world_size() == 1


@pytest.mark.parametrize("failure", [None, ValueError])
def test_scales_of_models_go_with_the_groups_that_they_were_reduced_over(
    failure: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []
    quantization = ModuleType("transformer_engine.pytorch.quantization")
    reset = SimpleNamespace(reset=lambda: there.append(parallel_state.model_parallel_is_initialized()))
    quantization.FP8GlobalStateManager = reset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, quantization.__name__, quantization)

    def on_rank(rank: int, size: int) -> list[bool]:
        for _ in range(2):
            with contextlib.suppress(ValueError), groups.initialized(Layout()):
                if failure is not None:
                    raise failure
        return there

    assert run_ranks(1, on_rank) == [[True, True]]
