"""States in host memory: where they lie, in what pieces they come and go, and that this changes no bit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from drawn_updates import everything, states_of, trained

from megatron_apriel.config.choices import Moments
from megatron_apriel.errors import ConfigError
from megatron_apriel.planning.host_memory import Room
from megatron_apriel.planning.state_forms import StateForm
from megatron_apriel.testing.marks import on_each_device
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train import pinned_memory, state_placement
from megatron_apriel.train.host_stream import HostStream
from megatron_apriel.train.pinned_memory import HostMemory

SIZES = (5, 40, 1, 33, 17)
TOTAL = sum(SIZES)
WHOLE = StateForm("float32", 16)


@on_each_device
@pytest.mark.parametrize("low_bits", [0, 8, 16])
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("share", "piece"), [(0.37, 7), (0.37, 100), (1.0, 1), (1.0, 7), (1.0, 333), (1.0, 10_000), (0.01, 1000)]
)
def test_where_states_lie_changes_no_bit(
    share: float, piece: int, moments: Moments, low_bits: int, device: str
) -> None:
    form = StateForm(moments, low_bits)  # type: ignore[arg-type]
    found, expected = everything(trained(form, share, piece, device)), everything(trained(form, 0.0, piece, device))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("low_bits", [0, 8, 16])
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_every_update_changes_all_states(moments: Moments, low_bits: int) -> None:
    """Or the tests of where they lie could not fail."""
    form = StateForm(moments, low_bits)  # type: ignore[arg-type]
    after, before = (states_of(trained(form, 1.0, 100, "cpu", steps=steps)) for steps in (40, 39))
    assert not any(torch.equal(one, other) for one, other in zip(after, before, strict=True) if len(one) > 1)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.37, 1.0])
@pytest.mark.parametrize("piece", [7, 1000])
def test_as_much_is_on_the_host_as_was_asked_for(share: float, piece: int) -> None:
    """The largest first, so that only the last is divided; a piece holds all states of its numbers and no more."""
    optimizer = trained(WHOLE, share, piece, "cpu", steps=0, sizes=SIZES)
    assert optimizer.host_bytes(share, piece=piece) == 10 * round(share * TOTAL)
    states, divided, away = optimizer.states, 0, {}
    for parameter in optimizer.param_groups[0]["params"]:
        parts = states.parts(parameter)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == len(parameter)
        on_host = [part for part in parts if part.packed is not None]
        assert all(len(part.packed) == 10 * (part.stop - part.start) for part in on_host)  # type: ignore[arg-type]
        assert all(part.stop - part.start <= piece for part in on_host)
        away[len(parameter)] = sum(part.stop - part.start for part in on_host)
        divided += 0 < away[len(parameter)] < len(parameter)
    assert sum(away.values()) == round(share * TOTAL) and divided <= 1
    assert states.host_bytes == 10 * round(share * TOTAL)
    smallest_away = min((size for size, count in away.items() if count), default=math.inf)
    assert all(count == size for size, count in away.items() if size > smallest_away)


@on_each_device
def test_a_skipped_update_moves_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = trained(WHOLE, 1.0, 7, device, steps=2)
    before = [tensor.clone() for tensor in everything(optimizer)]

    def refuse(*_: object) -> None:
        raise AssertionError("something moved")

    monkeypatch.setattr(HostStream, "run", refuse)
    optimizer.factor = torch.tensor(math.nan, device=device)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(before, everything(optimizer), strict=True))
    optimizer.factor = torch.tensor(1.0, device=device)
    with pytest.raises(AssertionError, match="something moved"):
        optimizer.step()


@on_each_device
@pytest.mark.parametrize("name", ["param", "exp_avg", "exp_avg_sq"])
def test_numbers_are_read_and_written_over_all_parts(name: str, device: str) -> None:
    optimizer = trained(WHOLE, 0.8, 7, device, steps=0, sizes=SIZES)
    parameter = optimizer.param_groups[0]["params"][1]
    assert len(optimizer.states.parts(parameter)) > 2
    numbers, values = optimizer.numbers(parameter)[name], torch.rand(40)
    for start, stop in ((0, 3), (3, 29), (29, 40)):
        numbers.write(start, values[start:stop])
    assert all(torch.equal(numbers.read(a, b).cpu(), values[a:b]) for a, b in ((0, 40), (6, 8), (13, 35), (5, 5)))


@on_each_device
@pytest.mark.parametrize("slab", [1, 1000, 1 << 20])
def test_memory_is_taken_in_slabs_of_whole_pieces(slab: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned_memory, "SLAB_BYTES", slab)
    sizes = [10, 700, 256, 1, 999, 5000]
    # As of a parameter: torch.device("cuda") would name no GPU.
    memory = HostMemory(sizes, torch.empty(0, device=device).device)
    assert [len(piece) for piece in memory.pieces] == sizes and not any(piece.any() for piece in memory.pieces)
    for number, piece in enumerate(memory.pieces):
        piece.fill_(number + 1)
        assert piece.data_ptr() % 256 == 0 and (device == "cpu" or piece.is_pinned())
    assert all(bool((piece == number + 1).all()) for number, piece in enumerate(memory.pieces))


@pytest.mark.parametrize("refused", [False, True])
def test_all_registered_memory_is_given_back(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a driver that is none; also where it does not register the last of it."""
    registered: set[int] = set()

    def register(address: int, size: int, flags: int) -> int:
        if refused and size == 1024:
            return 2
        registered.add(address)
        return 0

    driver = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=registered.remove)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(pinned_memory, "SLAB_BYTES", 1)
    sizes, device = [256, 256, 512, 1024], torch.device("cuda", 0)
    if refused:
        with pytest.raises(ConfigError, match=r"1\.00 KiB more of host memory for the optimizer's states were refused"):
            HostMemory(sizes, device)
    else:
        memory = HostMemory(sizes, device)
        assert registered == {piece.data_ptr() for piece in memory.pieces} and len(registered) == 4
        del memory
    assert not registered


@pytest.mark.parametrize(
    ("ranks", "most", "needed", "beside", "words"),
    [
        ("1", None, 900, 0, None),
        ("1", None, 901, 0, "needs 901 bytes of host memory, and 900 bytes may be taken."),
        ("4", None, 300, 0, "needs 300 bytes of host memory, 1.17 KiB for 4 ranks, and 900 bytes may be taken."),
        ("1", 500, 500, 0, None),
        ("1", 500, 501, 0, "and 900 bytes may be taken and optimizer.host_memory allows 500 bytes."),
        ("1", 5000, 901, 0, "and 900 bytes may be taken."),
        ("1", None, 900, 5000, None),  # what is taken is no longer free
        ("2", 500, 150, 100, None),
        ("2", 500, 151, 100, "optimizer.host_memory allows 500 bytes, of which 200 bytes are taken."),
        ("1", 500, 1, 700, "optimizer.host_memory allows 500 bytes, of which 700 bytes are taken."),
    ],
)
def test_what_the_host_has_not_is_refused(
    ranks: str, most: int | None, needed: int, beside: int, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(state_placement, "free_host_memory", lambda: Room(1000, "control group /job"))
    config = small_stage(optimizer={"peak": 1e-5, "host": "60%", "host_memory": most})

    def check() -> None:
        state_placement.check_host_memory(config, "optimizer.host=0.6", "Lower optimizer.host", needed, beside)

    if words is None:
        check()
        return
    with pytest.raises(ConfigError) as caught:
        check()
    said = str(caught.value)
    assert words in said and said.startswith("optimizer.host=0.6 needs")
    assert "control group /job has 1,000 bytes free" in said and "Lower optimizer.host" in said
