"""AdamW (arXiv 1711.05101) that scales the gradient on its way: one pass over the memory of parameters and moments.

A step's gradients are sums over all tokens of the global batch. What they must be multiplied by, one over the number of
tokens, and less where their norm is clipped, is known only when they are complete. Scaling them in their buffer, once
for each of the two, reads and writes 16 bytes a parameter; the update itself moves 28. Here the factor goes into the
update, where the gradient is read anyway. It is read from the parameters' device, so that whoever asks for the update
need not wait for the gradients.

On a GPU each parameter is one kernel (``adamw_kernel.py``); elsewhere the same is written in torch, equal to the bit
and to what the formulas give in float32, one rounded operation after another. State and groups
are laid out as Transformer Engine's ``FusedAdam`` has them, which Megatron's distributed optimizer can save and load:
``exp_avg`` and ``exp_avg_sq`` of a parameter in float32, and one ``step`` per group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_apriel.train.adamw_coefficients import Coefficients


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay; takes the place of the Adam that Megatron would use (``train/optimizer.py``).

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
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        self.factor = torch.ones((), device=next((parameter.device for parameter in parameters), None))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Nothing is waited for."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            coefficients = self._coefficients(group)
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    mean, square = self._moments(parameter)
                    _update(parameter, parameter.grad, self.factor, mean, square, coefficients)

    def take_back(self) -> None:
        """Do not count the last update, of which it is now known that its factor was not a number."""
        for group in self.param_groups:
            group["step"] -= 1

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
        )

    def _moments(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.float32)
        return state["exp_avg"], state["exp_avg_sq"]


def _update(
    parameter: Tensor, gradient: Tensor, factor: Tensor, mean: Tensor, square: Tensor, how: Coefficients
) -> None:
    if parameter.is_cuda:
        from megatron_apriel.train.adamw_kernel import update

        update(parameter, gradient, factor, mean, square, how)
    elif not factor.isnan():
        scaled = gradient.float() * factor
        # Operations that each round exactly, in the kernel's order; not torch's joined ones (lerp, addcdiv). Its square
        # root of float32 is off by one here and there on a CPU, and that of float64, rounded, is not.
        mean.add_((scaled - mean).mul_(how.mean_rate))
        square.add_((scaled * scaled).sub_(square).mul_(how.square_rate))
        size = (square * how.square_scale).double().sqrt_().float().add_(how.eps)
        parameter.mul_(how.keep).sub_((mean * how.rate).div_(size))
