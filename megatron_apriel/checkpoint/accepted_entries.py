"""What may lie in a distributed checkpoint: the entries that this project writes, and none besides.

A run's directory is passed from hand to hand. An entry that no save of this project makes is not left aside but
refused: whoever wrote it meant something by it that nobody here would do.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch

from megatron_apriel.checkpoint.metadata import Contents, StoredTensor
from megatron_apriel.checkpoint.piece_reader import PieceReader
from megatron_apriel.checkpoint.tensor_bytes import DTYPES
from megatron_apriel.errors import CheckpointError, listed
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import parameters

OPTIMIZER, RANDOM = "optimizer.state.", "random."
"""Beginnings of the keys of the optimizer's state and of the random states; a weight's key is its parameter's."""
OPTIMIZER_STATES = tuple(f"{OPTIMIZER}{name}." for name in ("param", "exp_avg", "exp_avg_sq"))
"""Beginnings of the keys of a trained parameter's float32 copy and of its moments."""
COMMON_STATE = "common_state/shard_0_1"
"""Where Megatron keeps what is not tensors. Here that is nothing: it is in ``run.json``."""

_RANDOM_DTYPES = (torch.uint8, torch.int64, torch.float64)
_NOTHING: list[dict[str, object]] = [{}]
_MOST_OF_NOTHING = 16 << 10
"""Bytes that torch needs to say it; 1,261 now."""


def empty_common_state() -> io.BytesIO:
    """What lies under :data:`COMMON_STATE`, as torch saves it."""
    nothing = io.BytesIO()
    torch.save(_NOTHING, nothing)
    return nothing


def check_contents(path: Path, contents: Contents, architecture: Architecture) -> None:
    """Refuse a checkpoint of another model, and one with entries that this project does not write.

    Args:
        path: of the checkpoint, for messages.
        contents: of its directory.
        architecture: of the model.

    Raises:
        CheckpointError: naming what is missing, left over, of another shape, or of a kind that is not read.
    """
    expected, stored = parameters(architecture), contents.tensors
    missing = [key for key in expected if key not in stored]
    others = [key for key in stored if key not in expected and not key.startswith((OPTIMIZER, RANDOM))]
    if missing or others:
        raise CheckpointError(
            f"{path}: its tensors are not those of the architecture: {len(missing)} missing ({listed(missing)}), "
            f"{len(others)} left over ({listed(sorted(others))}).",
            "The checkpoint is of another model, or its hf/config.json was changed.",
        )
    for key, tensor in stored.items():
        if key in expected:
            _check_weight(path, key, key, tensor, expected[key].shape)
        elif key.startswith(OPTIMIZER):
            of = next((key.removeprefix(state) for state in OPTIMIZER_STATES if key.startswith(state)), "")
            if of not in expected:
                raise _refused(path, key, "no optimizer of this project has such a state")
            _check_weight(path, key, of, tensor, expected[of].shape)
        elif len(tensor.shape) != 2 or tensor.dtype not in _RANDOM_DTYPES:
            found = f"it has shape {list(tensor.shape)} in {tensor.dtype}"
            raise _refused(path, key, f"{found}, and random states are bytes or whole numbers, a row for each rank")
    if contents.objects.keys() != {COMMON_STATE}:
        names = listed(sorted(contents.objects.keys() - {COMMON_STATE})) or "none at all"
        raise _refused(path, names, f"the one entry that is no tensor is {COMMON_STATE}, which is empty")


def check_common_state(path: Path, reader: PieceReader) -> None:
    """Read the one entry that is no tensor; raises CheckpointError unless it says what this project writes."""
    data = reader.read_object(COMMON_STATE, _MOST_OF_NOTHING)
    try:
        said = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's message would advise to switch off what keeps a file from running code
        raise _refused(path, COMMON_STATE, f"it is not plain data ({type(error).__name__})") from None
    if said != _NOTHING:
        raise _refused(path, COMMON_STATE, "it is not empty, and this project writes nothing there")


def _check_weight(path: Path, key: str, of: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        says = "the architecture says" if key == of else f"{of} has"
        raise CheckpointError(f"{path}: {key} has shape {list(tensor.shape)}, {says} {list(shape)}.")
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(f"{path}: {key} is stored as {tensor.dtype}, not a float of 16+ bits.")


def _refused(path: Path, key: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds {key}, which is refused: {why}.",
        "Only what this project writes is read of a checkpoint.",
        "Take a checkpoint that was saved by a run or written by convert_checkpoint.py.",
    )
