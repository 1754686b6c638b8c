"""Data-parallel wrapping and the optimizer: AdamW through Megatron's distributed optimizer.

A parameter's group follows from two facts: its component (each has its own learning-rate factor) and whether it is a
norm or a bias (no weight decay). Frozen parameters are in no group, have no gradient buffer and no optimizer state.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, ParamKey, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

from megatron_apriel.config.schema import OptimizerSection, StageConfig
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.model.freeze import component_of


def wrap_data_parallel(chunks: list[AprielModel], config: StageConfig) -> list[DistributedDataParallel]:
    """Wrap each model chunk so that gradients accumulate in float32 buffers, sharded over the data-parallel ranks.

    Also hands the schedule's callbacks to the model's TransformerConfig. Call after freezing: parameters that do not
    require a gradient get no buffer.
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
    model_config = chunks[0].config
    wrapped = [
        DistributedDataParallel(model_config, settings, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    model_config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        single = len(wrapped) == 1
        model_config.no_sync_func = wrapped[0].no_sync if single else [chunk.no_sync for chunk in wrapped]
        starts = [chunk.start_param_sync for chunk in wrapped]
        model_config.param_sync_func = starts[0] if single else starts
    return wrapped


def build_optimizer(chunks: list[DistributedDataParallel], config: StageConfig) -> MegatronOptimizer:
    """AdamW over the trained parameters of ``chunks``, with one group per component and decay."""
    section, bf16 = config.optimizer, config.precision.compute == "bf16"
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
    optimizer = get_megatron_optimizer(settings, chunks, config_overrides=_group_overrides(config))
    chunks[0].config.grad_scale_func = optimizer.scale_loss
    return optimizer


def _group_overrides(config: StageConfig) -> dict[ParamKey, ParamGroupOverride]:
    overrides = {}
    for component in config.trained_components:
        factor = getattr(config.train, component)

        def in_component(parameter: torch.nn.Parameter, name: str, component: str = component) -> bool:
            return component_of(name) == component

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


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """L2 norm of the gradient over all parameters and ranks, after reduction; every rank gets the same number."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def apply_gradients(optimizer: MegatronOptimizer, norm: float, clip: float) -> None:
    """Scale the reduced gradients so that their norm is at most ``clip``, and update the parameters."""
    for part in _parts(optimizer):
        parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
        if parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=clip, total_norm=norm)
    optimizer.step_with_ready_grads()


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))
