"""Inputs of recomputed layers wait in host memory for their backward pass, and come back ahead of it.

Of a layer that is computed again, all that the forward pass keeps is what enters it: the hidden states of every token.
For 48 layers of 32768 tokens that is 15 GiB. With ``recompute.inputs=host`` each goes to the host while its layer
computes, and comes back while the layer above it is computed again and goes backward; copies change no bit. Two streams
do that, one for each way, and events keep the order. The last inputs of a pass are wanted first and do not leave the
device. In an interleaved or long pipeline the inputs of several micro-batches wait; each has a place of its own, and
how many there are follows from the schedule (``planning/memory.py``).

Nothing in Megatron's recomputation is replaced. Autograd lets hooks take the place of a tensor that is kept for
backward (``torch.autograd.graph.saved_tensors_hooks``). A recomputed layer runs forward without gradients, and
what enters it is what is kept right after that; layers that are not recomputed, and the final norm, keep what they keep
without the hooks.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, cast

import torch
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from megatron_apriel.planning.memory import INPUTS_ON_THE_WAY
from megatron_apriel.train.pinned_memory import HostMemory


class _Input:
    """What entered a layer. Its place on the host is free again when this object is gone: autograd has it, until then.

    Attributes:
        here: on the device; None while it is on the host alone.
        place: tensor of its shape on the host.
        below: what entered the layer before, in the same pass: it is wanted next.
        moved: on a GPU, the end of the last copy from or to the host.
    """

    def __init__(self, entering: Tensor, place: Tensor, below: _Input | None) -> None:
        self.here: Tensor | None = entering
        self.place, self.below = place[: entering.nbytes].view(entering.dtype).view(entering.shape), below
        self.device = entering.device
        self.moved: torch.cuda.Event | None = None


class LayerInputs:
    """The way between device and host for what enters a rank's recomputed layers.

    Args:
        count: how many may wait at once.
        size: bytes of one.
        device: of the layers.
    """

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        self.host_bytes = count * size
        self._memory = HostMemory([size] * count, device, "layers' inputs", "Set recompute.inputs=gpu")
        self._free = list(self._memory.pieces)
        self._leaving: deque[weakref.ref[_Input]] = deque()
        self._entering: Tensor | None = None
        self._newest: _Input | None = None
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None
        self._down = self._up = None
        if device.type == "cuda":
            self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def follow(self, block: TransformerBlock) -> None:
        """Keep what enters the recomputed layers of a block from now on."""
        block.register_forward_pre_hook(lambda *_: self._begin())
        block.register_forward_hook(lambda *_: self._end(), always_call=True)
        for layer in block.layers:
            layer.register_forward_pre_hook(lambda _, __, given: self._enter(given["hidden_states"]), with_kwargs=True)
        if block.final_layernorm is not None:
            block.final_layernorm.register_forward_pre_hook(lambda *_: self._end())

    @property
    def waiting(self) -> int:
        """Inputs that have a place on the host."""
        return len(self._memory.pieces) - len(self._free)

    def _begin(self) -> None:
        if torch.is_grad_enabled():
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._kept, self._wanted)
            self._hooks.__enter__()

    def _end(self) -> None:
        if self._hooks is not None:
            self._hooks.__exit__()
        self._hooks = self._entering = self._newest = None

    def _enter(self, hidden_states: Tensor) -> None:
        """A layer begins: with gradients nothing of it is computed again, and of those after it neither."""
        if torch.is_grad_enabled():
            self._end()
        elif self._hooks is not None:
            self._entering = hidden_states

    def _kept(self, tensor: Tensor) -> Tensor | _Input:
        """What autograd gets for a tensor that it is to keep."""
        if self._entering is None or tensor.data_ptr() != self._entering.data_ptr():
            return tensor
        self._entering = None
        assert self._free, f"more than the {len(self._memory.pieces)} inputs that were planned for wait at once"
        place = self._free.pop()
        kept = self._newest = _Input(tensor.detach(), place, self._newest)
        weakref.finalize(kept, self._free.append, place).atexit = False
        self._copy(kept.place, tensor, kept, self._down)
        self._leaving.append(weakref.ref(kept))
        if len(self._leaving) > INPUTS_ON_THE_WAY:
            self._leave(self._leaving.popleft()())
        return kept

    def _leave(self, kept: _Input | None) -> None:
        """Free the device's memory of an input once its copy is made; None: the input is gone already."""
        if kept is not None:
            _wait_for(kept.moved)
            kept.here = None

    def _wanted(self, kept: Tensor | _Input) -> Tensor:
        """What autograd gets back; the one below sets out."""
        if isinstance(kept, Tensor):
            return kept
        if kept.here is None:
            self._bring(kept)
        if kept.below is not None and kept.below.here is None:
            self._bring(kept.below)
        _wait_for(kept.moved)
        return cast(Tensor, kept.here)

    def _bring(self, kept: _Input) -> None:
        # Allocated on the stream that computes. Its memory may be in use there until now: the copy waits for that.
        kept.here = torch.empty_like(kept.place, device=kept.device)
        self._copy(kept.here, kept.place, kept, self._up)

    def _copy(self, target: Tensor, origin: Tensor, kept: _Input, stream: Any) -> None:
        if stream is None:
            target.copy_(origin)
            return
        # Whatever has been queued comes first: what made the origin, and what used the target's memory before.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            target.copy_(origin, non_blocking=True)
            kept.moved = torch.cuda.Event()
            kept.moved.record(stream)


def _wait_for(moved: torch.cuda.Event | None) -> None:
    """Have what is queued from now on wait for a copy."""
    if moved is not None:
        torch.cuda.current_stream().wait_event(moved)
