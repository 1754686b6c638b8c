"""AdamW (arXiv 1711.05101) that scales the gradient on its way: one pass over the memory of parameters and moments.

A step's gradients are sums over all tokens of the global batch. What they must be multiplied by, one over the number of
tokens, and less where their norm is clipped, is known only when they are complete. Scaling them in their buffer, once
for each of the two, reads and writes 16 bytes a parameter; the update itself moves 28. Here the factor goes into the
update, where the gradient is read anyway. It is read from the parameters' device, so that whoever asks for the update
need not wait for the gradients.

Parameters in bf16 are updated in float32 all the same: see ``split_master.py``. States are kept by
``optimizer_states.py``, in the form that was chosen for each kind of parameter, and not in torch's ``state``: that
would cast them to the parameters' type when groups are restored. Those that lie in host memory come and go by
``host_stream.py`` and meet the same kernel, so where a state lies changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_apriel.train.adamw_coefficients import Coefficients
from megatron_apriel.train.adamw_update import update
from megatron_apriel.train.host_stream import HostStream, Job
from megatron_apriel.train.optimizer_states import Division, OptimizerStates, StateNumbers, StatePart


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay; takes the place of the Adam that Megatron would use (``train/optimizer.py``).

    A parameter's gradient, float32, is its attribute ``decoupled_grad``, as Megatron calls a gradient whose type is not
    the parameter's; where it has ``gradient_sums``, in 24 bits, it is that.

    Attributes:
        factor: every gradient is multiplied by it as it is read, and the gradients themselves stay; float32, without
            dimensions, on the parameters' device. Where it is not a number, an update leaves everything as it is.

    Raises:
        ValueError: for options that this optimizer has not, such as narrow moments.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **options: Any,
    ) -> None:
        options["L2 regularisation"] = not adam_w_mode
        if unsupported := sorted(name for name, value in options.items() if value):
            raise ValueError(f"AdamW knows no {', '.join(unsupported)}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.factor = torch.ones((), device=next((parameter.device for parameter in self._parameters()), None))
        self._states: OptimizerStates | None = None
        self._stream: HostStream | None = None

    def make_states(self, host_share: float = 0.0, **how: Any) -> None:
        """Make what is kept of every parameter. Parameters must not be exchanged after that.

        Args:
            host_share: part of all states, by bytes, that lies in host memory.
            how: further arguments of :meth:`~megatron_apriel.train.optimizer_states.Division.of`.
        """
        self._states = OptimizerStates(Division.of(self._parameters(), host_share, **how))
        if self._states.piece_bytes:
            self._stream = HostStream(self.factor.device, self._states.piece_bytes)

    def host_bytes(self, host_share: float, **how: Any) -> int:
        """Bytes that :meth:`make_states` with these arguments takes of the host."""
        return sum(Division.of(self._parameters(), host_share, **how).sizes)

    @property
    def states(self) -> OptimizerStates:
        """What is kept of every parameter; on the device where :meth:`make_states` was not called."""
        if self._states is None:
            self.make_states()
        assert self._states is not None
        if self._stream is not None:
            self._stream.wait()
        return self._states

    def numbers(self, parameter: Tensor) -> dict[str, StateNumbers]:
        """Master and moments of a parameter, by their names in a checkpoint; until the next update."""
        return self.states.numbers(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Nothing is waited for, but for the factor where states lie on the host: without one none of them moves.
        """
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        if self._states is None:
            self.make_states()
        if self._stream is None or not self.factor.isnan():
            jobs = list(self._update_here())
            if self._stream is not None:
                self._stream.run(jobs)

    def take_back(self) -> None:
        """Do not count the last update, of which it is now known that its factor was not a number."""
        for group in self.param_groups:
            group["step"] -= 1

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _update_here(self) -> Iterator[Job]:
        """Update what has its states on the device; what is to happen to the others, once they are."""
        assert self._states is not None
        for group in self.param_groups:
            how = self._coefficients(group)
            for parameter in group["params"]:
                if getattr(parameter, "decoupled_grad", None) is None:
                    continue
                for part in self._states.parts(parameter):
                    if part.packed is None:
                        self._update(parameter, part, how)
                    else:
                        yield part.packed, partial(self._update_brought, parameter, part, how)

    def _update_brought(self, parameter: Tensor, part: StatePart, how: Coefficients, packed: Tensor) -> None:
        self._update(parameter, part.brought(packed), how)

    def _update(self, parameter: Any, part: StatePart, how: Coefficients) -> None:
        inside = slice(part.start, part.stop)
        numbers, sums = parameter.view(-1)[inside], getattr(parameter, "gradient_sums", None)
        gradients = sums.part(part.start, part.stop) if sums is not None else parameter.decoupled_grad.view(-1)[inside]
        if part.start < part.stop:
            update(numbers, part.states, gradients, self.factor, how)

    def _coefficients(self, group: dict[str, Any]) -> Coefficients:
        beta1, beta2 = group["betas"]
        lr, step = group["lr"], group["step"]
        return Coefficients(
            mean_rate=1 - beta1,
            square_rate=1 - beta2,
            keep=1 - lr * group["weight_decay"],
            rate=lr / (1 - beta1**step),
            square_scale=1 / (1 - beta2**step),
            eps=group["eps"],
            step=step,
        )
