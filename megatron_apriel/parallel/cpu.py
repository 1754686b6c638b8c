"""Megatron Core on a CPU, with gloo: everything that is needed for it, in this one place.

Megatron Core assumes CUDA. It asks for the current device and uses the answer as ``device=``, writes ``device="cuda"``
literally, compares ``tensor.type()`` with ``"torch.cuda.FloatTensor"``, orders streams, and keeps its random states in
the GPU's generator. None of that is essential: gloo has all the collectives that it uses. :func:`enable` answers those
questions for a CPU, so that the same model, schedules, optimizer and checkpoints run in tests and in the quickstart.

It does nothing where CUDA is present, and nothing outside this file asks whether it ran. What it changes:

1. ``torch.cuda.current_device``, ``synchronize``, streams and events: a CPU has one queue of work, always in order.
2. A :class:`TorchFunctionMode` that turns ``cuda`` devices into ``cpu`` and lets ``Tensor.type()`` answer as a CUDA
   tensor would. It costs about two microseconds per call of a torch function.
3. Random states live in the CPU's generator.
4. Norm and scaling of many tensors at once: Megatron's own loops over them, not Transformer Engine's kernels.

May import torch and megatron-core only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")

_CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}

_active: _CudaAsCpu | None = None


def enable() -> bool:
    """Make megatron-core run on this process's CPU; call before building process groups or models.

    Idempotent. Returns whether the CPU layer is on: False where CUDA is present, and then nothing was changed.
    """
    global _active
    if torch.cuda.is_available():
        return False
    if _active is None:
        _replace_streams()
        _replace_random_states()
        _replace_multi_tensor_kernels()
        _active = _CudaAsCpu()
        # Entered for good: the mode lasts as long as the process, as the absence of CUDA does.
        _active.__enter__()
    return True


def _is_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _CudaAsCpu(TorchFunctionMode):
    """Answers every request for a CUDA tensor with a CPU tensor."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs) if kwargs else {}
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _CUDA_TYPE_NAMES.get(result, result)
        return result


class _Event:
    """Work on a CPU is done when the call returns, so an event has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream:
    """The one queue of work of a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, *args: Any) -> None: ...

    def wait_event(self, *args: Any) -> None: ...

    def record_event(self, *args: Any) -> _Event:
        return _Event()

    def synchronize(self) -> None: ...


def _replace_streams() -> None:
    stream = _Stream()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.set_device = lambda *args: None
    cuda.synchronize = lambda *args, **kwargs: None
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: stream
    cuda.stream = lambda *args, **kwargs: contextlib.nullcontext()
    cuda.Stream, cuda.Event = _Stream, _Event


def _replace_random_states() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    class CpuRandomStates(megatron_random.CudaRNGStatesTracker):  # type: ignore[misc]
        """Megatron's named random states, kept by the CPU's generator."""

        def add(self, name: str, seed: int) -> None:
            self._is_initialized = True
            if seed in self.seeds_ or name in self.states_:
                raise ValueError(f"random state {name!r} or its seed {seed} was added before")
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator("cpu").manual_seed(seed).get_state()

        @contextlib.contextmanager
        def fork(self, name: str = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            outside = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outside)

    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    megatron_random.CudaRNGStatesTracker = CpuRandomStates


def _replace_multi_tensor_kernels() -> None:
    """Norm and scaling of many tensors at once: where Transformer Engine is installed its CUDA kernels are chosen."""
    import megatron.core.optimizer.clip_grads as clipping
    import megatron.core.optimizer.optimizer as optimizer
    from megatron.core import utils

    clipping.l2_norm_impl, clipping.multi_tensor_scale_tensor_impl = utils.local_multi_tensor_l2_norm, None
    for module in (clipping, optimizer):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
