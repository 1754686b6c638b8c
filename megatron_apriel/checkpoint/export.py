"""Writes the model as a Hugging Face directory, from any parallel layout, one parameter at a time.

Rank 0 writes; the ranks that hold a parameter's shards send them to it, in the order of the file, so that nobody ever
holds more than one whole parameter. The directory appears at its place when it is whole. It carries what transformers
needs to load and generate: config, tokenizer, processor, chat template and generation config are the given
model's, with what training changed set anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_apriel.checkpoint.parameter_shards import Place, check_all_owned, owned_parameters
from megatron_apriel.checkpoint.tekken_processor import settle_tekken
from megatron_apriel.checkpoint.tensor_bytes import SAFETENSORS_NAMES, as_bytes
from megatron_apriel.checkpoint.training_state import unwrapped
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import ChatFormat, set_chat_format, write_hf_sidecars
from megatron_apriel.formats.kinds import config_for, sidecar_directory
from megatron_apriel.formats.megatron_parameters import Parameter, Split, parameters
from megatron_apriel.formats.tensor_files import TensorSpec
from megatron_apriel.formats.tensor_names import Form, weights
from megatron_apriel.outputs import check_destination, whole_directory
from megatron_apriel.parallel.agreement import agree, of_all_ranks, on_first_rank
from megatron_apriel.progress import progress
from megatron_apriel.surgery.shards import Room, plan_shards, write_tensors


@torch.no_grad()
def export_hf(
    chunks: Sequence[nn.Module],
    architecture: Architecture,
    *,
    sidecars: str | Path,
    destination: str | Path,
    max_shard_size: int | None = 5 * 10**9,
    dtype: torch.dtype | None = None,
    chat_format: ChatFormat | None = None,
    overwrite: bool = False,
) -> Path:
    """Write this model as a Hugging Face directory that transformers loads and generates from; collective.

    Args:
        chunks: this rank's model chunks, wrapped or not, with gathered parameters.
        architecture: of the model.
        sidecars: checkpoint of any kind whose config, tokenizer and processor files go along.
        destination: directory to make; whole or absent.
        max_shard_size: bytes of tensors per safetensors file; None for one file.
        dtype: of the stored weights; None keeps the model's.
        chat_format: of prompts and answers; None keeps the given model's.
        overwrite: replace an earlier result.

    Returns:
        The destination.

    Raises:
        CheckpointError: on all ranks, if it could not be written; the destination is then as it was.
    """
    destination, place, models = Path(destination), Place.current(), unwrapped(chunks)
    owned: dict[str, Tensor] = {entry.key: tensor for entry, tensor in owned_parameters(models, architecture, place)}
    check_all_owned(set(owned), architecture)
    dtype = dtype or next(iter(models[0].parameters())).dtype
    name = str(dtype).removeprefix("torch.")
    on_first_rank(lambda: _check(destination, architecture, sidecars, name, overwrite), destination)
    gathered = _gathered(owned, architecture, place, dtype)
    if dist.get_rank() != 0:
        for _ in gathered:
            pass
        agree(None, destination)
        return destination
    failure = None
    try:
        with whole_directory(destination, overwrite) as partial:
            given = sidecar_directory(sidecars)
            _write_weights(partial, architecture, gathered, dtype, max_shard_size)
            write_hf_sidecars(partial, given, config_for(architecture, given, name))
            settle_tekken(partial, architecture)
            if chat_format is not None:
                set_chat_format(partial, chat_format)
    except Exception as error:
        failure = error
        for _ in gathered:  # the others are sending, and would wait for ever
            pass
    agree(failure, destination)
    return destination


def _check(destination: Path, architecture: Architecture, sidecars: str | Path, dtype: str, overwrite: bool) -> None:
    check_destination(destination, overwrite)
    config_for(architecture, sidecar_directory(sidecars), dtype)


def _write_weights(
    directory: Path,
    architecture: Architecture,
    gathered: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_size: int | None,
) -> None:
    form = Form.TEXT_ONLY if architecture.tower is None else Form.LEGACY
    table = weights(architecture)
    stored = {name: table[name].stored_as(form) for name in _order(architecture)}
    specs = [TensorSpec(stored[name], SAFETENSORS_NAMES[dtype], table[name].shape) for name in stored]
    with progress("exporting", total=sum(spec.size for spec in specs), unit="byte") as step:

        def contents(spec: TensorSpec, room: Room) -> Iterator[memoryview]:
            name, tensor = next(gathered)
            if stored[name] != spec.name:
                raise RuntimeError(f"{name} was gathered where {spec.name} is to be written")
            yield as_bytes(tensor)

        write_tensors(directory, plan_shards(specs, max_shard_size), contents, step=step)


def _order(architecture: Architecture) -> list[str]:
    """Names of all weights in the order in which whole parameters give them."""
    return [name for parameter in parameters(architecture).values() for name in _weights_of(parameter)]


def _weights_of(parameter: Parameter) -> list[str]:
    return list(dict.fromkeys(piece.weight for piece in parameter.pieces))


def _gathered(
    owned: dict[str, Tensor], architecture: Architecture, place: Place, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """On rank 0, every weight of the model in order, on the CPU; on the others it sends shards and yields nothing."""
    owners, mine = _owners(owned, place), dist.get_rank()
    device = torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    table = weights(architecture)
    for parameter in parameters(architecture).values():
        ranks = owners[parameter.key][: 1 if parameter.split is Split.REPLICATED else None]
        whole: dict[str, Tensor] = {}
        if mine == 0:
            whole = {name: torch.empty(table[name].matrix, dtype=dtype) for name in _weights_of(parameter)}
        for tensor_rank, rank in enumerate(ranks):
            shard = owned[parameter.key].detach().to(device, dtype).contiguous() if rank == mine else None
            if rank != 0 and shard is not None:
                dist.send(shard, dst=0)
            elif mine == 0:
                if shard is None:
                    shard = torch.empty(parameter.shard_shape(len(ranks)), dtype=dtype, device=device)
                    dist.recv(shard, src=rank)
                _place(parameter, shard.cpu(), tensor_rank, len(ranks), whole)
        yield from ((name, tensor.reshape(table[name].shape)) for name, tensor in whole.items())


def _place(parameter: Parameter, shard: Tensor, rank: int, size: int, whole: dict[str, Tensor]) -> None:
    """Copy a tensor-parallel rank's shard of a parameter to where it belongs in Hugging Face's tensors."""
    row = 0
    rows = shard.reshape(shard.shape[0], -1)
    for piece in parameter.shard(rank, size):
        first, last = piece.columns or (0, rows.shape[1])
        whole[piece.weight][piece.start : piece.stop, first:last] = rows[row : row + piece.stop - piece.start]
        row += piece.stop - piece.start


def _owners(owned: dict[str, Tensor], place: Place) -> dict[str, list[int]]:
    """The global ranks that send each parameter, by tensor-parallel rank."""
    owners: dict[str, dict[int, int]] = {}
    for rank, (where, keys) in enumerate(of_all_ranks((place, sorted(owned) if place.copy == 0 else []))):
        for key in keys:
            owners.setdefault(key, {})[where.tensor] = rank
    return {key: [ranks[number] for number in sorted(ranks)] for key, ranks in owners.items()}
