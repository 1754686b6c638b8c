"""What every decoder layer put out on a layout of ranks, put together to whole sequences, to compare layouts with.

The ranks of a layout each see some layers, some sequences and some tokens of them; :class:`LayerOutputs` listens to the
layers of a rank's model chunks and knows which tokens it hears, :func:`gather_outputs` puts all ranks' together. Where
the tokens of a rank stand in their sequence is worked out here from the rank's place alone, apart from the batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.testing.batches import owned_positions

Outputs = dict[tuple[int, int], Tensor]
"""Hidden states [S, H] by decoder layer (its global number) and sequence."""


class LayerOutputs:
    """Listens to the decoder layers of a rank's chunks from the moment it is made until :meth:`close`.

    A layer that runs again in the backward pass, to recompute its activations, is not listened to.
    """

    def __init__(self, chunks: Iterable[AprielModel]) -> None:
        self._heard: Outputs = {}
        self._sequence: int | None = None
        self._handles = []
        for chunk in chunks:
            self._handles += [
                chunk.register_forward_pre_hook(self._begin),
                chunk.register_forward_hook(self._end),
            ]
            for number, layer in zip(chunk.decoder_layers, chunk.decoder.layers, strict=True):
                self._handles.append(layer.register_forward_hook(self._listener(number)))

    def _begin(self, chunk: torch.nn.Module, arguments: tuple[Batch]) -> None:
        self._sequence = arguments[0].sequence

    def _end(self, *_: Any) -> None:
        self._sequence = None

    def _listener(self, number: int) -> Any:
        def listen(layer: torch.nn.Module, arguments: Any, outputs: tuple[Tensor, Any]) -> None:
            if self._sequence is not None:
                self._heard[number, self._sequence] = outputs[0][:, 0].detach().clone()

        return listen

    def close(self) -> Outputs:
        """Stop listening; what this rank heard of its own tokens."""
        for handle in self._handles:
            handle.remove()
        return self._heard


def gather_outputs(heard: Outputs, sequence_length: int, sequence_parallel: bool) -> Outputs:
    """Outputs of whole sequences, on every rank, from what each rank heard. All ranks must call this.

    Raises:
        ValueError: if tokens of a sequence are missing.
    """
    owned = owned_positions(
        sequence_length,
        parallel_state.get_context_parallel_rank(),
        parallel_state.get_context_parallel_world_size(),
    )
    if sequence_parallel:
        size = len(owned) // parallel_state.get_tensor_model_parallel_world_size()
        owned = owned[parallel_state.get_tensor_model_parallel_rank() * size :][:size]
    everyone: list[tuple[list[int], Outputs]] = [([], {})] * dist.get_world_size()
    dist.all_gather_object(everyone, (owned, heard))
    whole: Outputs = {}
    for positions, part in everyone:
        for place, hidden in part.items():
            if place not in whole:
                whole[place] = torch.full((sequence_length, hidden.shape[1]), torch.nan)
            whole[place][positions] = hidden
    missing = sorted(place for place, hidden in whole.items() if hidden.isnan().any())
    if missing:
        raise ValueError(f"not all tokens were heard of (layer, sequence) {missing}")
    return whole
