"""The peer outside Megatron: transformers' ``MistralForCausalLM`` with Liger's kernels and torch's own AdamW.

``bf16``: all of Liger's kernels, nothing compiled. ``float8``: torchao's tensorwise float8 in every linear layer of the
decoder's layers, which torchao means to be compiled, so that casts join the operations around them; there torch.compile
fuses norms, rotary positions and SwiGLU, and Liger gives the fused linear cross entropy. Attention is FlashAttention
where it is installed and nothing is compiled, torch's own otherwise. Weights, gradients and moments
are bf16, which is what transformers' users train in; Megatron's are float32 beside bf16 weights, and cost more time and
memory. With ``8bit`` the moments are torchao's in blocks of 8 bits, which lets the whole model fit on one GPU; with
``full``, or a number, all or so many of its layers are computed again. A model of text: image tokens are tokens to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from liger_kernel.transformers import apply_liger_kernel_to_mistral
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_4_available

from benchmarks.cases import Case
from benchmarks.subjects import NotPossible, bytes_of
from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.formats.architecture import Architecture


class Liger:
    """The patched model and its optimizer."""

    def __init__(self, architecture: Architecture, precision: str) -> None:
        precision, *changes = precision.split("+")
        compiled = precision == "float8"
        apply_liger_kernel_to_mistral(
            rope=not compiled, rms_norm=not compiled, swiglu=not compiled, fused_linear_cross_entropy=True
        )
        settings = Architecture(architecture.decoder).to_hf_config()
        config = MistralConfig(**{key: settings[key] for key in settings if key not in ("model_type", "architectures")})
        attention = _attention(compiled)
        with torch.device("cuda"):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
        if compiled:
            _compile_in_float8(self.model.model.layers)
        self.model.train()
        if recomputed := [change for change in changes if change != "8bit"]:
            _recompute(self.model, recomputed[0])
        self.optimizer = _optimizer(self.model, "8bit" in changes)

    def step(self, batches: Sequence[Batch]) -> float:
        """Gradients of all batches, clipping, update; the loss is a mean over the step's tokens, as everywhere here."""
        tokens = sum(batch.num_loss_tokens for batch in batches)
        total = torch.zeros((), device="cuda")
        for batch in batches:
            output = self.model(
                input_ids=batch.tokens_S[None],
                position_ids=batch.positions_S[None],
                labels=_own_labels(batch)[None],
                use_cache=False,
            )
            # Not by num_items_in_batch, which reaches the compiled layers and would have them compiled again.
            loss = output.loss * (batch.num_loss_tokens / tokens)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total)

    def memory(self) -> dict[str, int]:
        """Gradients are as large as the weights, and gone between steps."""
        parameters = list(self.model.parameters())
        state = [
            part
            for held in self.optimizer.state.values()
            for value in held.values()
            if isinstance(value, torch.Tensor) and value.is_cuda
            for part in _parts(value)
        ]
        return {
            "weights": bytes_of(parameters),
            "main gradients": sum(parameter.nbytes for parameter in parameters),
            "optimizer state": bytes_of(state),
        }


def _recompute(model: Any, number: str) -> None:
    """Compute so many layers again in the backward pass, or ``full``: all."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.model.layers[len(model.model.layers) if number == "full" else int(number) :]:
        layer.gradient_checkpointing = False


def _optimizer(model: torch.nn.Module, in_8_bits: bool) -> torch.optim.Optimizer:
    how: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.1}
    if in_8_bits:
        from torchao.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(model.parameters(), **how)
        return optimizer
    return torch.optim.AdamW(model.parameters(), **how, fused=True)


def _parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that one in 8 bits is made of; any other itself."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]


def _attention(compiled: bool) -> str:
    """The fastest that is installed; what is compiled keeps torch's own, which the compiler sees through."""
    if compiled:
        return "sdpa"
    if is_flash_attn_4_available():
        return "flash_attention_4"
    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def _compile_in_float8(layers: torch.nn.ModuleList) -> None:
    """Convert every linear layer of the decoder's layers, not of the head, and compile each layer in its place."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(layers, config=Float8LinearConfig.from_recipe_name("tensorwise"))
    for layer in layers:
        layer.compile()


def _own_labels(batch: Batch) -> Tensor:
    """Labels at the place of the token itself: transformers shifts them by one, over the borders of documents too."""
    first = batch.labels_S.new_full((1,), IGNORED_LABEL)
    return torch.cat([first, batch.labels_S[:-1]])


@contextlib.contextmanager
def opened(architecture: Architecture, case: Case, precision: str) -> Iterator[Liger]:
    """transformers' training of ``architecture``'s decoder on this process's device."""
    if not torch.cuda.is_available():
        raise NotPossible("Liger's kernels need a CUDA device")
    if case.documents != "one" and _attention(precision.startswith("float8")) == "sdpa":
        raise NotPossible("transformers attends within packed documents through flash-attn, which is not used here")
    yield Liger(architecture, precision)
