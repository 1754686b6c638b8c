"""Data-parallel wrapping and the optimizer: this project's AdamW inside Megatron's distributed optimizer.

A parameter's group follows from two facts: its component (each has its own learning-rate factor) and whether it is a
norm or a bias (no weight decay). Frozen parameters are in no group, have no gradient buffer and no optimizer state.

Gradients in the buffers are sums over the tokens of the global batch, until the next step. They are never divided or
clipped in place: what they are to be multiplied by goes into the update (``adamw.py``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, ParamKey, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.tensor_names import component_of
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.model.main_grad import share_placeholders
from megatron_apriel.parallel.groups import current_device
from megatron_apriel.train.adamw import AdamW
from megatron_apriel.train.gradient_sums import give_sums, keep_sums, mark

_CLIP_EPSILON = 1e-6
"""Added to the norm before the division, as Megatron and torch have it."""


def wrap_data_parallel(chunks: list[AprielModel], config: StageConfig) -> list[DistributedDataParallel]:
    """Wrap each model chunk so that gradients accumulate in float32 buffers, sharded over the data-parallel ranks.

    With ``optimizer.gradients=24bit``, those of layers' matrices do so in 24 bits (``gradient_sums.py``).

    Also hands the schedule's callbacks to the model's TransformerConfig. Call after freezing: parameters that do not
    require a gradient get no buffer.

    Raises:
        ConfigError: masters or gradients are to be in 24 bits, and weights are not in bf16.
    """
    overlap = config.parallel.overlap
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
        # A non-finite gradient is found once, in the global norm, and the step is skipped there.
        check_for_nan_in_grad=False,
    )
    model_config, narrow = chunks[0].config, config.optimizer.gradients == "24bit"
    check_forms(config)
    if narrow:
        mark(chunks)
    wrapped = [
        DistributedDataParallel(model_config, settings, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    if narrow:
        keep_sums(wrapped)
    if model_config.transformer_impl == "transformer_engine":
        share_placeholders(chunks)
    model_config.finalize_model_grads_func = _finalize_without_division
    if overlap:
        single = len(wrapped) == 1
        model_config.no_sync_func = wrapped[0].no_sync if single else [chunk.no_sync for chunk in wrapped]
        starts = [chunk.start_param_sync for chunk in wrapped]
        model_config.param_sync_func = starts[0] if single else starts
    return wrapped


def check_forms(config: StageConfig) -> None:
    """Raise ConfigError if masters or gradients are to be in 24 bits, and weights are not in bf16 on this machine."""
    compute = config.precision.compute_on(torch.cuda.is_available())
    if config.kept_in_24_bits and compute != "bf16":
        given = " and ".join(f"optimizer.{name}=24bit" for name in config.kept_in_24_bits)
        raise ConfigError(
            f"{given} needs weights in bf16, not in {compute}.",
            "24 bits are a bf16 number and eight bits more.",
            f"Set precision.compute=bf16, or {given.replace('24bit', 'float32')}.",
        )


def _finalize_without_division(chunks: list[torch.nn.Module], num_tokens: torch.Tensor | None, **how: Any) -> None:
    """Megatron's reductions of the gradients over ranks, without its pass over them that divides by ``num_tokens``."""
    finalize_model_grads(chunks, None, **how)


def use_own_adamw() -> None:
    """Have Megatron build its optimizers of this project's AdamW, on every device; idempotent."""
    import megatron.core.optimizer as optimizers
    import megatron.core.optimizer.distrib_optimizer as distributed

    optimizers.Adam, optimizers.USING_PYTORCH_OPTIMIZER = AdamW, False
    # "Apex" is how Megatron calls an Adam whose step count belongs to the parameter group.
    distributed.Adam, distributed.HAVE_APEX_OR_TE, distributed.USING_APEX_OPTIMIZER = AdamW, True, True


def build_optimizer(chunks: list[DistributedDataParallel], config: StageConfig) -> MegatronOptimizer:
    """AdamW over the trained parameters of ``chunks``, with one group per component and decay."""
    section, bf16 = config.optimizer, config.precision.compute_on(torch.cuda.is_available()) == "bf16"
    settings = OptimizerConfig(
        optimizer="adam",
        lr=section.peak,
        min_lr=0.0,
        weight_decay=section.weight_decay,
        adam_beta1=section.betas[0],
        adam_beta2=section.betas[1],
        adam_eps=section.eps,
        clip_grad=section.clip,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=True,
        overlap_param_gather=config.parallel.overlap,
    )
    # Megatron then gives the optimizer the ranks' own runs of the parameters themselves, with float32 gradients beside
    # them, and leaves masters to it. The switch that sets this asks for Transformer Engine's Adam.
    settings.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    use_own_adamw()
    # Megatron's runs of float32 parameters are views with a way back to these in autograd, where Python's collector
    # does not see that they refer to each other: with gradients on, nothing of a trainer would ever be given back.
    with torch.no_grad():
        optimizer = get_megatron_optimizer(settings, chunks, config_overrides=_group_overrides(config))
    chunks[0].config.grad_scale_func = optimizer.scale_loss
    return optimizer


def _group_overrides(config: StageConfig) -> dict[ParamKey, ParamGroupOverride]:
    overrides = {}
    for component in config.trained_components:
        factor = getattr(config.train, component)

        def in_component(parameter: torch.nn.Parameter, name: str, component: str = component) -> bool:
            return component_of(name).trained_as == component

        key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=component, fn=in_component))
        overrides[key] = ParamGroupOverride(max_lr=config.optimizer.peak * factor, min_lr=0.0)
    undecayed = ParamWithNamePredicate(name="norms_and_biases", fn=lambda parameter, name: parameter.dim() < 2)
    overrides[ParamKey(with_name_predicate=undecayed)] = ParamGroupOverride(wd_mult=0.0)
    return overrides


def set_learning_rate(optimizer: MegatronOptimizer, rate: float, section: OptimizerSection) -> None:
    """Give every group its rate: ``rate`` times the component's factor; and its weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["max_lr"] / section.peak
        group["weight_decay"] = section.weight_decay * group["wd_mult"]


def gradient_norm(optimizer: MegatronOptimizer) -> torch.Tensor:
    """L2 norm of the summed gradient over all parameters and ranks, after reduction; the same number on every rank.

    Float64 without dimensions, on this rank's device, which is not waited for.
    """
    optimizer.prepare_grads()
    give_sums(optimizer)
    norm = optimizer.get_grad_norm()
    if not isinstance(norm, torch.Tensor):
        norm = torch.tensor(norm, dtype=torch.float64, device=current_device())
    return norm.double().view(())


def gradient_factor(
    norm_of_sum: torch.Tensor, loss_sums: torch.Tensor, tokens: torch.Tensor, clip: float
) -> torch.Tensor:
    """What the summed gradient is multiplied by in an update; not a number if there must be no update.

    It makes the sum the mean gradient of a token, scaled so that its norm is at most ``clip``. Float64 on the device of
    the arguments, which is not waited for.

    Args:
        norm_of_sum: see :func:`gradient_norm`.
        loss_sums: losses summed over the global batch; if one of them or the norm is not finite there is no update.
        tokens: how many carry loss in the global batch; if none does there is no update, which would be decay alone.
        clip: largest norm of an update's gradient.
    """
    divisor = tokens.clamp(min=1.0)
    factor = (clip / (norm_of_sum / divisor + _CLIP_EPSILON)).clamp(max=1.0) / divisor
    finite = norm_of_sum.isfinite() & loss_sums.isfinite().all()
    return factor.where(finite & (tokens > 0), math.nan)


def apply_gradients(optimizer: MegatronOptimizer, factor: torch.Tensor) -> None:
    """Update the parameters by the summed gradients times ``factor``; see :func:`gradient_factor`."""
    for own in own_optimizers(optimizer):
        own.factor = factor.float()
    optimizer.step_with_ready_grads()


def take_back(optimizer: MegatronOptimizer) -> None:
    """Do not count the last update, of which it is now known that it changed nothing."""
    for own in own_optimizers(optimizer):
        own.take_back()


def own_optimizers(optimizer: MegatronOptimizer) -> list[AdamW]:
    """This rank's; none where nothing of its part of the model trains."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if not getattr(part, "is_stub_optimizer", False)]
