"""The peer: megatron-core's own ``GPTModel`` with Transformer Engine's layers, trained as Megatron-LM trains it.

Every fusion that this installation offers is on: rotary positions, SwiGLU, bias and dropout, cross entropy. Weight
gradients are added to the float32 buffer inside Transformer Engine's layers; the output layer would need Apex for that.
Only the process groups come from this project. A model of text: image tokens are tokens to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.subjects import NotPossible
from benchmarks.subjects.megatron_memory import megatron_memory
from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout


def transformer_config(decoder: DecoderArchitecture, precision: str) -> TransformerConfig:
    """megatron-core's configuration of the decoder; ``precision`` is ``bf16``, ``delayed`` or ``tensorwise``."""
    fp8 = {} if precision == "bf16" else {"fp8": "hybrid", "fp8_recipe": precision}
    return TransformerConfig(
        num_layers=decoder.num_layers,
        hidden_size=decoder.hidden_size,
        num_attention_heads=decoder.num_heads,
        num_query_groups=decoder.num_kv_heads,
        kv_channels=decoder.head_dim,
        ffn_hidden_size=decoder.ffn_hidden_size,
        layernorm_epsilon=decoder.norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=True,
        bias_dropout_fusion=True,
        apply_rope_fusion=True,
        masked_softmax_fusion=False,
        cross_entropy_loss_fusion=True,
        **fp8,
    )


class Megatron:
    """GPTModel, Megatron's data-parallel wrapper and its distributed optimizer."""

    def __init__(self, decoder: DecoderArchitecture, case: Case, precision: str) -> None:
        self.case = case
        config = transformer_config(decoder, precision)
        model = GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_layer_with_transformer_engine_spec(),
            vocab_size=decoder.vocab_size,
            max_sequence_length=case.sequence_length,
            position_embedding_type="rope",
            rotary_base=int(decoder.rope_theta),
            share_embeddings_and_output_weights=False,
        ).cuda()
        for module in model.modules():
            # The configuration's own switch would also ask for Apex's kernel, for the output layer.
            if hasattr(module, "fuse_wgrad_accumulation"):
                module.fuse_wgrad_accumulation = True
        settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
        self.wrapped = [DistributedDataParallel(config, settings, model)]
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=1e-5,
                weight_decay=0.1,
                adam_beta2=0.95,
                clip_grad=1.0,
                bf16=True,
                params_dtype=torch.bfloat16,
                use_distributed_optimizer=True,
            ),
            self.wrapped,
        )
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss

    def step(self, batches: Sequence[Batch]) -> float:
        """As Megatron-LM's ``train_step``: gradients, clipping and update inside Megatron's optimizer."""
        self.wrapped[0].zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iter(batches),
            model=self.wrapped,
            num_microbatches=len(batches),
            seq_length=self.case.sequence_length,
            micro_batch_size=1,
            forward_only=False,
        )
        self.optimizer.step()
        loss, tokens = (sum(report[key].item() for report in reports) for key in ("loss", "tokens"))
        return float(loss / tokens)

    def _forward(self, batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(batches)
        mask_S = (batch.labels_S != IGNORED_LABEL).float()
        losses_1S = model(
            batch.tokens_S[None],
            batch.positions_S[None],
            None,
            labels=batch.labels_S.clamp(min=0)[None],
            packed_seq_params=self._packed(batch),
        )
        return losses_1S, partial(_loss, mask_S)

    def _packed(self, batch: Batch) -> PackedSeqParams | None:
        """Documents' borders; none for one document, so that Megatron takes its ordinary way."""
        if self.case.documents == "one":
            return None
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=batch.max_document,
            max_seqlen_kv=batch.max_document,
        )

    def memory(self) -> dict[str, int]:
        return megatron_memory(self.wrapped, self.optimizer)


def _loss(mask_S: Tensor, losses_1S: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    total, tokens = (losses_1S.view(-1).float() * mask_S).sum(), mask_S.sum().int()
    return total, tokens, {"loss": total.detach(), "tokens": tokens}


@contextlib.contextmanager
def opened(architecture: Architecture, case: Case, precision: str) -> Iterator[Megatron]:
    """megatron-core's training of ``architecture``'s decoder, alone on this process's device."""
    if not torch.cuda.is_available():
        raise NotPossible("Transformer Engine's layers need a CUDA device")
    with groups.initialized(Layout()):
        yield Megatron(architecture.decoder, case, precision)
