"""FlashAttention-4 and cuDNN: whole documents, images, and blocks of a sequence that is divided over ranks.

Of blocks, each rank has its turn after another's on one GPU, with all keys at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType

from megatron_apriel.batch import Batch
from megatron_apriel.config.choices import Attention
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.model.attention import LocalCoreAttention, PackedSelfAttention, packed
from megatron_apriel.model.context import attend_by_blocks
from megatron_apriel.model.options import ModelOptions, decoder_config
from megatron_apriel.model.specs import block_spec, choose_layers
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import gathered_parts, make_batch, owned_positions
from megatron_apriel.testing.marks import needs_flash_attention, needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_transformer_engine]

HEADS, GROUPS, SIZE = 8, 2, 128
ARCHITECTURE = Architecture(DecoderArchitecture(1024, 1, HEADS, GROUPS, SIZE, 2048, 1024))
PACKS = {
    "one document": [2048],
    "several": [700, 1, 63, 900, 130, 254],
    "many short ones": [17] * 120 + [8],
}


KINDS = [pytest.param("flash", marks=needs_flash_attention), "cudnn"]


def core_attention(kind: Attention, causal: bool = True) -> torch.nn.Module:
    """As the decoder has it, or with the tower's mask."""
    alone = groups.group_of_one()
    layers = choose_layers("transformer_engine", kind)
    config = decoder_config(ARCHITECTURE.decoder, ModelOptions(dtype=torch.bfloat16), Layout())
    core: torch.nn.Module = layers.core_attention(
        config=config,
        layer_number=1,
        attn_mask_type=AttnMaskType.causal if causal else AttnMaskType.no_mask,
        attention_type="self",
        pg_collection=ProcessGroupCollection(tp=alone, cp=alone),
    )
    return core


def undivided(
    core: torch.nn.Module, inputs: list[torch.Tensor], batch: Batch, mask: AttnMaskType = AttnMaskType.causal
) -> torch.Tensor:
    params: PackedSeqParams = packed(batch.cu_seqlens, batch.max_document)
    output = core(*inputs, None, attn_mask_type=mask, attention_bias=None, packed_seq_params=params)
    return output.view(-1, HEADS, SIZE)


def by_blocks(
    core: torch.nn.Module, inputs: list[torch.Tensor], documents: list[list[int]], contexts: int
) -> torch.Tensor:
    query, key, value = inputs
    outputs, places, gathered = [], [], gathered_parts(key, value, contexts)
    for context in range(contexts):
        part = make_batch(ARCHITECTURE, documents, place=DataPlace(context=context, contexts=contexts)).to("cuda").part
        owned = owned_positions(query.shape[0], context, contexts)
        assert part is not None
        outputs.append(attend_by_blocks(core, query[owned], gathered, part.blocks).view(-1, HEADS, SIZE))
        places += owned
    return torch.zeros_like(query).index_copy(0, torch.tensor(places, device="cuda"), torch.cat(outputs))


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found.float() - reference).norm() / reference.norm())


def draw(pack: str) -> tuple[list[list[int]], Batch, list[torch.Tensor], torch.Tensor]:
    """Documents, their batch, query, key and value, and the output's gradient."""
    documents = [[20] * length for length in PACKS[pack]]
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2048, heads, SIZE) for heads in (HEADS, GROUPS, GROUPS, HEADS)]
    *inputs, weight = (torch.randn(shape, generator=generator, device="cuda").bfloat16() for shape in shapes)
    return documents, make_batch(ARCHITECTURE, documents).to("cuda"), inputs, weight


def results(
    attend: Callable[[list[torch.Tensor]], torch.Tensor], inputs: list[torch.Tensor], weight: torch.Tensor,
    dtype: torch.dtype,
) -> list[torch.Tensor]:  # fmt: skip
    """Output and the gradients of query, key and value."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    output = attend(leaves)
    return [output.detach(), *torch.autograd.grad((output * weight.to(dtype)).sum(), leaves)]


@pytest.fixture(autouse=True)
def only_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that forms all scores would hide that a kernel does not take a case."""
    monkeypatch.setenv("NVTE_UNFUSED_ATTN", "0")


@pytest.fixture(autouse=True)
def memory_that_was_used_before() -> None:
    """Kernels find no zeros in memory that they should have written."""
    torch.full((2**28,), float("nan"), device="cuda")


NAMES = ("output", "query", "key", "value")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_kernels_against_float32(kind: Attention, pack: str, causal: bool) -> None:
    mask = AttnMaskType.causal if causal else AttnMaskType.no_mask
    _, batch, inputs, weight = draw(pack)
    local = LocalCoreAttention(None, 1, mask, "self")  # type: ignore[arg-type]
    expected = results(lambda leaves: undivided(local, leaves, batch, mask), inputs, weight, torch.float32)
    with groups.initialized(Layout()):
        core = core_attention(kind, causal)
        found = results(lambda leaves: undivided(core, leaves, batch, mask), inputs, weight, torch.bfloat16)
    for name, reference, one in zip(NAMES, expected, found, strict=True):
        assert distance(one, reference) < 0.01, name


@pytest.mark.parametrize("contexts", [2, 4])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_all_ranks_round_no_worse_than_the_whole(kind: Attention, pack: str, contexts: int) -> None:
    documents, batch, inputs, weight = draw(pack)
    local = LocalCoreAttention(None, 1, AttnMaskType.causal, "self")  # type: ignore[arg-type]
    expected = results(lambda leaves: undivided(local, leaves, batch), inputs, weight, torch.float32)
    with groups.initialized(Layout()):
        core = core_attention(kind)
        whole = results(lambda leaves: undivided(core, leaves, batch), inputs, weight, torch.bfloat16)
        in_blocks = results(lambda leaves: by_blocks(core, leaves, documents, contexts), inputs, weight, torch.bfloat16)
    for name, reference, one, parts in zip(NAMES, expected, whole, in_blocks, strict=True):
        # Gradients of keys are summed over the blocks in bf16, which rounds once more per block.
        assert distance(parts, reference) < 1.5 * distance(one, reference) + 0.002, name


def test_transformer_engine_is_not_told_of_context_parallelism() -> None:
    """It would divide the sequence for itself."""
    with groups.initialized(Layout()):
        alone = groups.group_of_one()
        attention = PackedSelfAttention(
            decoder_config(ARCHITECTURE.decoder, ModelOptions(dtype=torch.bfloat16), Layout(2, context=2)),
            block_spec(
                choose_layers("transformer_engine", "cudnn"),
                num_layers=1,
                ffn_hidden_size=2048,
                causal=True,
                final_norm=False,
            )
            .layer_specs[0]
            .submodules.self_attention.submodules,
            layer_number=1,
            attn_mask_type=AttnMaskType.causal,
            cp_comm_type="p2p",
            pg_collection=ProcessGroupCollection(tp=alone, cp=alone),
        )
        assert attention.core_attention.cp_group is None
