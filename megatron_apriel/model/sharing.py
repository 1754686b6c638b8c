"""How ranks share a sequence's images, and how their features get into the sequence.

Tower and projector are held whole by every tensor- and context-parallel rank of the first pipeline stage. Running every
image on every rank would repeat the same work; dividing the tower's matrices would make each of them tiny. So each rank
takes whole images instead, its *share*, and the projected features of all shares are gathered afterwards:

    patches of my share -> tower -> projector -> features of my share -> gather -> features of all -> my slots

An image is run by one rank and may have its slots on another: which rank owns which tokens is not asked when images
are shared out, so that shares stay even.

Backward, tensor-parallel ranks hold the same gradient for the features, because the decoder's input gradient is summed
over them. Context-parallel ranks each hold the gradient of the features that stand among their own tokens, and zero for
all others; the sum over these ranks is the gradient of all features. Of it a rank keeps the part of its share.

A tower weight's gradient is then the **sum** over all of these ranks, each having seen other images. Over the
context-parallel ranks Megatron sums every parameter's gradient, as over the data-parallel ones. Over the
tensor-parallel ranks it can *average* a replicated parameter's gradient (the mark
``average_gradients_across_tp_domain``), with and without sequence parallelism; the sum is the average of gradients that
are larger by the number of tensor-parallel ranks, so that is what the gather passes down.

A rank without images skips tower and projector, but not what the data-parallel ranks do together about their
parameters. Those collectives must come in the same order on every rank, whatever its batches hold, or ranks would add
up different parameters. Forward, parameters are gathered bucket by bucket as modules come to use them:
:func:`await_parameters` has every rank gather all of these, in the modules' order, before any of them is used.
Backward, a bucket is reduced when its last gradient is there: :func:`with_zero_gradients` gives gradients of zero, one
parameter after another, in the order that a real backward pass has, for which :func:`parameters_by_use` lists them.

Shape letters: S sequence, H hidden, K patches of all shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherShares(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, share: Tensor, sizes: tuple[int, ...], group: dist.ProcessGroup, context: dist.ProcessGroup
    ) -> Tensor:
        ctx.sizes, ctx.group, ctx.context = sizes, group, context
        largest = max(sizes)
        # Collectives want equal sizes: shares are balanced, so padding to the largest costs little.
        padded = share.new_zeros(largest, share.shape[1])
        padded[: share.shape[0]] = share
        gathered = share.new_empty(len(sizes) * largest, share.shape[1])
        dist.all_gather_into_tensor(gathered, padded, group=group)
        return torch.cat([gathered[rank * largest : rank * largest + size] for rank, size in enumerate(sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient_KH, rank, contexts = gradients[0], ctx.group.rank(), ctx.context.size()
        if contexts > 1:
            # A copy, because the gradient that autograd passes may have other readers.
            gradient_KH = gradient_KH.clone()
            dist.all_reduce(gradient_KH, group=ctx.context)
        start = sum(ctx.sizes[:rank])
        own = gradient_KH[start : start + ctx.sizes[rank]]
        return own * (len(ctx.sizes) // contexts), None, None, None


def gather_shares(
    share_H: Tensor, sizes: Sequence[int], group: dist.ProcessGroup, context: dist.ProcessGroup
) -> Tensor:
    """Features of all shares [K, H] from this rank's [sizes[rank], H]; see the module's text for the gradient.

    Args:
        share_H: features of this rank's images.
        sizes: patches of each rank's share.
        group: the ranks that share the images, tensor- and context-parallel.
        context: those of them that divide the tokens.

    Raises:
        ValueError: if the images were shared over another number of ranks than ``group`` has, or this rank's share has
            another size than announced.
    """
    if len(sizes) != group.size():
        raise ValueError(f"images are in {len(sizes)} shares, but ranks that gather them: {group.size()}")
    if share_H.shape[0] != sizes[group.rank()]:
        raise ValueError(f"share {group.rank()} has {share_H.shape[0]} patches, announced were {sizes[group.rank()]}")
    if len(sizes) == 1:
        return share_H
    return _GatherShares.apply(share_H, tuple(sizes), group, context)


class _WithZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, parameter: Tensor) -> Tensor:
        ctx.parameter_like = (parameter.shape, parameter.dtype, parameter.device)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.parameter_like
        return gradients[0], torch.zeros(shape, dtype=dtype, device=device)


def with_zero_gradients(tensor: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``tensor``, whose backward pass also gives every trained one of ``parameters`` a gradient of zero.

    The last parameter gets its gradient first, as in the backward pass of modules that run in this order.
    """
    if torch.is_grad_enabled():
        # One node each: autograd runs later nodes first and a leaf at once, which fixes the order.
        for parameter in parameters:
            if parameter.requires_grad:
                tensor = _WithZeroGradient.apply(tensor, parameter)
    return tensor


def parameters_by_use(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """Parameters of ``module`` in the order in which a forward pass comes to them.

    That is the order in which modules are made, but for Megatron's attention, which makes its way out first.
    """
    yield from module.parameters(recurse=False)
    way_out = getattr(module, "linear_proj", None)
    for child in sorted(module.children(), key=lambda child: child is way_out):
        yield from parameters_by_use(child)


def await_parameters(*modules: torch.nn.Module) -> None:
    """Have the newest parameters of ``modules`` gathered from the data-parallel ranks, in the modules' order.

    Megatron waits for them in hooks before a module's forward pass; here those run without the pass.
    """
    for module in modules:
        for part in module.modules():
            for hook in part._forward_pre_hooks.values():
                hook(part, ())


def place_features(embeddings_S1H: Tensor, features_KH: Tensor, slots_K: Tensor) -> Tensor:
    """The embeddings with each feature in its slot; what stood there gets no gradient."""
    return embeddings_S1H.index_copy(0, slots_K, features_KH[:, None].to(embeddings_S1H.dtype))
