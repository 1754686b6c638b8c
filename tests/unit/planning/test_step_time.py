"""Predicted step times: measured steps are met, and each part of the arithmetic is what a person computes by hand."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import KINDS, Hardware, LayerTimes
from megatron_apriel.planning.pipeline_schedule import pipeline_seconds
from megatron_apriel.planning.step_time import StepTime, collective, step_time
from megatron_apriel.planning.workload import Content, Workload
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture.from_preset("apriel-15b")
H200 = KINDS["h200"]
BITS = ("bf16", "fp8")
# One TFLOP/s for everything, no memory traffic, no waiting: what is left are operations.
PLAIN = H200.model_copy(
    update={
        **dict.fromkeys((name for name in Hardware.model_fields if name.startswith(("linear", "attention"))), 1.0),
        "head": 1.0,
        "tower": 1.0,
        "beside_products": 0.0,
        "loss_bytes": 0.0,
        "optimizer_bytes": 4.0,
        "latency": 0.0,
        **dict.fromkeys((f"host_{part}_{bits}" for part in ("layer", "tensor", "context") for bits in BITS), 0.0),
        "copy_bandwidth": 1e12,
        "intra_node": 1e12,
        "inter_node": 1e12,
    }
)
SMALL = Architecture(DecoderArchitecture(64, 8, 4, 2, 16, 128, 256))


def small(layout: Layout, gpu: Hardware = PLAIN, sequences: int = 8, **changes: Any) -> StepTime:
    config = small_stage(64, sequences, **changes)
    return step_time(config, SMALL, layout, gpu, Workload.of(config))


def test_a_pass_takes_as_long_as_the_host_needs_to_start_it() -> None:
    """By hand for 8 layers: milliseconds forward and backward, a third of them again where layers are recomputed."""
    times = {"host_layer_bf16": 30.0, "host_layer_fp8": 60.0, "host_tensor_bf16": 6.0, "host_context_bf16": 3.0}
    gpu = PLAIN.model_copy(update=times)

    def of_a_micro_batch(layout: Layout | None = None, **changes: Any) -> float:
        step = small(layout or Layout(), gpu, **changes)
        assert step.total == pytest.approx(step.compute + step.host + step.bubble + step.communication, rel=1e-3)
        return (step.compute + step.communication + step.host) / step.micro_batches

    assert of_a_micro_batch() == pytest.approx(8 * 0.030, rel=1e-3)
    assert of_a_micro_batch(precision={"fp8": "tensorwise", "compute": "bf16"}) == pytest.approx(8 * 0.060, rel=1e-3)
    assert of_a_micro_batch(recompute={"mode": "full"}) == pytest.approx(8 * 0.040, rel=1e-3)
    some = {"mode": "full", "layers": 3}
    assert of_a_micro_batch(recompute=some) == pytest.approx(3 * 0.040 + 5 * 0.030, rel=1e-3)
    assert of_a_micro_batch(Layout(2, tensor=2, sequence=True)) == pytest.approx(8 * 0.036, rel=1e-3)
    assert of_a_micro_batch(Layout(4, tensor=2, sequence=True, context=2)) == pytest.approx(8 * 0.039, rel=1e-3)
    assert of_a_micro_batch(Layout(2, pipeline=2)) == pytest.approx(4 * 0.030, rel=1e-3)
    # What is waited for, and what computes, is time in which the host goes on.
    slow = gpu.model_copy(update={"intra_node": 1e-4})
    waited = small(Layout(2, tensor=2, sequence=True), slow)
    assert waited.host == 0 and waited.communication / waited.micro_batches > 8 * 0.036


def compute_of(layout: Layout, documents: tuple[int, ...]) -> float:
    work = Workload.known([Content(documents)] * 8)
    return step_time(small_stage(64, 8), SMALL, layout, PLAIN, work).compute


def one_gpu(layers: int, length: int, micro_batches: int, fp8: str, documents: int | None = None) -> StepTime:
    config = small_stage(length, micro_batches, precision={"fp8": fp8})
    model = Architecture(APRIEL.with_layers(layers).decoder)
    return step_time(config, model, Layout(), H200, Workload.of(config, documents))


@pytest.mark.parametrize(("fp8", "milliseconds"), [("none", 24.9), ("delayed", 16.2), ("tensorwise", 17.0)])
def test_the_layer_that_the_rates_came_from(fp8: str, milliseconds: float) -> None:
    eight, four = (one_gpu(layers, 8192, 8, fp8).total for layers in (8, 4))
    assert (eight - four) / 4 / 8 * 1000 == pytest.approx(milliseconds, rel=0.002)


def test_the_rate_of_a_layer_by_hand() -> None:
    """6 x 272.6 M products a token, in what attention (at 1000 TFLOP/s) and the optimizer leave of 100 ms."""
    times = LayerTimes(100, 1000, 2, 1000, 1000, optimizer_milliseconds=20)
    attention = 3 * 2 * 1000**2 * 4096 / 1e15
    weights = 5120 * 128 * 80 + 3 * 5120 * 14336
    assert times.rate() == pytest.approx(6 * 1000 * weights / 1e12 / (0.100 - 0.010 - attention))


def test_operations_by_hand() -> None:
    """64 tokens, 8 sequences: a layer has 64 x 16 x 12 + 3 x 64 x 128 weights and 64 x 64 of causal attention."""
    layer, head = 64 * (64 * 16 * 12 + 3 * 64 * 128) + 64**2 * 64, 64 * 256 * 64
    time = small(Layout())
    assert time.compute * 1e12 == pytest.approx(6 * 8 * (8 * layer + head))
    assert time.flops == 6 * 8 * (8 * layer + head)
    assert (time.communication, time.bubble) == (0, 0)
    assert small(Layout(4, tensor=4, sequence=True)).compute == pytest.approx(time.compute / 4)
    assert small(Layout(4, context=2, tensor=2)).compute == pytest.approx(time.compute / 4)
    assert small(Layout(4)).compute == pytest.approx(time.compute / 4)


def test_recomputation_adds_forward_passes() -> None:
    none, selective, full = (
        small(Layout(), recompute={"mode": mode}).compute * 1e12 for mode in ("none", "selective", "full")
    )
    assert full - none == pytest.approx(2 * 8 * 8 * (64 * (64 * 16 * 12 + 3 * 64 * 128) + 64**2 * 64))
    assert selective - none == pytest.approx(2 * 8 * 8 * 64 * 3 * 64 * 128)
    some = small(Layout(), recompute={"mode": "full", "layers": 2}).compute * 1e12
    assert some - none == pytest.approx((full - none) / 4)
    assert small(Layout(), recompute={"mode": "full"}).flops == small(Layout()).flops


def test_layers_kept_in_bf16_run_at_its_rate() -> None:
    """Of eight layers one at the start and two at the end."""
    gpu = PLAIN.model_copy(update={"linear_tensorwise": 2.0})

    def compute(start: int, end: int, pipeline: int = 1) -> float:
        precision = {"fp8": "tensorwise", "bf16_layers_at_start": start, "bf16_layers_at_end": end}
        return small(Layout(pipeline, pipeline=pipeline), gpu, precision=precision).compute

    assert compute(0, 0) < compute(1, 2) < compute(4, 4)
    assert compute(1, 2) - compute(0, 0) == pytest.approx((compute(4, 4) - compute(0, 0)) * 3 / 8)
    assert compute(4, 4) == pytest.approx(small(Layout(), gpu).compute)
    assert compute(0, 2, 2) - compute(0, 0, 2) == pytest.approx((compute(4, 4) - compute(0, 0)) * 2 / 8)


def test_a_frozen_decoder_leaves_out_gradients_of_weights() -> None:
    model = Architecture.from_preset("tiny")
    time = {}
    for name, train in {"projector": {"projector": 1}, "decoder": {"decoder": 1}}.items():
        config = small_stage(64, 8, train=train)
        time[name] = step_time(config, model, Layout(), PLAIN, Workload.of(config, images=0)).compute
        flops = step_time(config, model, Layout(), PLAIN, Workload.of(config, images=0)).flops
        assert time[name] * 1e12 == pytest.approx(flops)
    assert time["projector"] < time["decoder"]


def test_what_is_beside_the_products_of_a_frozen_decoder_stays() -> None:
    """Of a layer's three passes over its products a frozen one saves one, but not the work beside it."""
    model, config = Architecture.from_preset("tiny"), small_stage(64, 8, train={"projector": 1})
    workload = Workload.of(config, images=0)

    def compute(share: float) -> float:
        gpu = PLAIN.model_copy(update={"beside_products": share})
        return step_time(config, model, Layout(), gpu, workload).compute

    products = 8 * 2 * 64 * model.decoder.num_layers * (model.decoder.layer_parameters - 2 * model.decoder.hidden_size)
    assert compute(0.5) - compute(0.0) == pytest.approx(0.5 * products / 1e12)


def test_images_stand_on_the_first_stage() -> None:
    model = Architecture.from_preset("tiny")
    config = small_stage(64, 8, train={"tower": 1, "projector": 1, "decoder": 1})
    text, images = (step_time(config, model, Layout(), PLAIN, Workload.of(config, images=share)) for share in (0, 0.5))
    assert images.compute > text.compute
    assert images.compute * 1e12 == pytest.approx(images.flops)


def test_a_trained_tower_is_computed_again_too() -> None:
    """32 patches in one image; two layers of 4 x 48 x 48 + 3 x 48 x 96 weights. A frozen tower has no backward pass."""
    model, patches = Architecture.from_preset("tiny"), 32
    mlp = 2 * patches * 2 * 3 * 48 * 96
    layers = 2 * patches * 2 * (4 * 48**2 + 3 * 48 * 96) + 2 * 4 * patches**2 * 48

    def again(mode: str, share: float, tower: float) -> float:
        config = small_stage(64, 8, train={"tower": tower, "projector": 1, "decoder": 1}, recompute={"mode": mode})
        return step_time(config, model, Layout(), PLAIN, Workload.of(config, images=share)).compute * 1e12

    for mode, repeated in (("none", 0), ("selective", mlp), ("full", layers)):
        for tower, expected in ((1, repeated), (0, 0)):
            images = again(mode, 0.5, tower) - again(mode, 0, tower)
            without = again("none", 0.5, tower) - again("none", 0, tower)
            assert images - without == pytest.approx(8 * expected, abs=1)


@pytest.mark.parametrize(("pipeline", "virtual", "sequences"), [(2, 1, 8), (4, 1, 8), (4, 2, 8), (2, 4, 2)])
def test_a_pipeline(pipeline: int, virtual: int, sequences: int) -> None:
    """Chunks of equally many layers, the last with the head; the last rank is the slowest."""
    time = small(Layout(pipeline, pipeline=pipeline, virtual=virtual), sequences=sequences)
    layer, head = 64 * (64 * 16 * 12 + 3 * 64 * 128) + 64**2 * 64, 64 * 256 * 64
    assert time.compute * 1e12 == pytest.approx(6 * sequences * (8 // pipeline * layer + head))
    forward = [[[2.0 * 8 / pipeline / virtual * layer] for _ in range(virtual)] for _ in range(pipeline)]
    forward[-1][-1][0] += 2 * head
    backward = [[[2 * one for one in chunk] for chunk in rank] for rank in forward]
    assert (time.compute + time.bubble) * 1e12 == pytest.approx(pipeline_seconds(forward, backward, sequences, 0))
    assert time.bubble > 0


def test_collective() -> None:
    assert collective(100, 8e9, 4, 50) == pytest.approx(0.06 + 50e-6)
    assert collective(100, 8e9, 1, 50) == 0


def waiting(layout: Layout, **changes: Any) -> float:
    """Bytes that the slowest rank waits for in one of a step's micro-batches of 64 tokens, at a GB/s."""
    gpu = PLAIN.model_copy(update={"intra_node": 1.0, "inter_node": 1.0})
    time = small(layout, gpu, train={"decoder": 1}, **changes)
    return time.communication / time.micro_batches * 1e9


def test_volumes_of_communication() -> None:
    """Hidden states are 64 tokens x 64 x 2 bytes, keys and values 64 x 2 x 2 x 16 x 2 bytes."""
    hidden, keys = 64 * 64 * 2, 64 * 2 * 2 * 16 * 2
    assert waiting(Layout(2, tensor=2, sequence=True)) == pytest.approx(8 * 8 * hidden / 2)
    assert waiting(Layout(4, tensor=4)) == pytest.approx(8 * 8 * hidden * 3 / 4)
    again = waiting(Layout(2, tensor=2, sequence=True), recompute={"mode": "full"})
    assert again == pytest.approx(8 * 12 * hidden / 2)
    assert waiting(Layout(4, pipeline=2, tensor=2, sequence=True)) == pytest.approx(4 * 8 * hidden / 2)
    # The last rank, much the slowest, waits for the first hidden states, and for the next ones while it sends gradients
    # back; the first rank for the last gradients.
    slow, fast = (
        PLAIN.model_copy(update={"intra_node": speed, "linear_bf16": 1e-3, "head": 1e-3}) for speed in (1.0, 1e12)
    )
    bubbles = [small(Layout(2, pipeline=2), gpu, train={"decoder": 1}).bubble for gpu in (slow, fast)]
    assert (bubbles[0] - bubbles[1]) * 1e9 == pytest.approx(9 * hidden)
    # Over context ranks gradients and weights are scattered and gathered too: 6 bytes of each parameter, here exposed.
    once = 6 * SMALL.decoder.parameters / 2 / 8
    context = waiting(Layout(2, context=2), parallel={"overlap": False})
    assert context - once == pytest.approx(8 * 2 * keys / 2, rel=0.01)


def test_gradients_hide_behind_one_micro_batch() -> None:
    parameters = SMALL.decoder.parameters
    gpu = PLAIN.model_copy(update={"intra_node": 0.5})
    layer, head = 64 * (64 * 16 * 12 + 3 * 64 * 128) + 64**2 * 64, 64 * 256 * 64
    forward = 2 * (8 * layer + head) / 1e12
    gradients, weights = (size * parameters / 2 / 0.5e9 for size in (4, 2))
    assert gradients > 2 * forward > 0 and weights > forward
    hidden = small(Layout(2), gpu).communication
    assert hidden == pytest.approx(gradients - 2 * forward + weights - forward)
    assert small(Layout(2), gpu, parallel={"overlap": False}).communication == pytest.approx(gradients + weights)
    assert small(Layout(2)).communication == 0


def test_optimizer() -> None:
    """Its state is split over the replicas; the gradients' buffer is set to zero whole."""
    parameters = SMALL.decoder.parameters
    gpu = PLAIN.model_copy(update={"optimizer_bytes": 44.0, "copy_bandwidth": 1.0})
    assert small(Layout(), gpu).optimizer == pytest.approx(44 * parameters / 1e9)
    assert small(Layout(4), gpu).optimizer == pytest.approx((10 + 4) * parameters / 1e9)


def test_links() -> None:
    assert H200.link(8, 64) == H200.link(2, 64) == H200.link(6, 6) == H200.intra_node
    assert H200.link(16, 64) == H200.link(6, 12) == H200.inter_node


def test_attention_meets_its_two_measurements() -> None:
    """Rates are reached at their lengths; shorter documents are slower, since each query costs some keys more."""
    for rate, measured in zip(H200.attention(), ((611, 636), (426, 470)), strict=True):
        for length, expected in zip((8192, 32768), measured, strict=True):
            assert 4 * length**2 / 2 / rate.seconds(4, length**2 / 2, length) / 1e12 == pytest.approx(expected)
        assert rate.seconds(4, 2 * 1000**2 / 2, 2000) > 2 * rate.seconds(4, 1000**2 / 2, 500)
    level = H200.model_copy(update={"attention_8k_forward": 100.0, "attention_32k_forward": 90.0}).attention()[0]
    assert level == (90, 0)


def test_attention_of_short_documents_was_measured() -> None:
    """``benchmarks/results/attention-h200-d9e8b40-20261129-231130.md``: 11 documents of 2979 tokens, 5.97 ms."""
    forward, backward = H200.attention()
    pairs, queries, flops = 32768 * 2979 / 2, 32768, 4 * 32 * 128
    both = forward.seconds(flops, pairs, queries) + backward.seconds(2 * flops, pairs, queries)
    assert 1e3 * both == pytest.approx(5.97, rel=0.02)


def test_the_busiest_context_rank_counts() -> None:
    """Sixteen tokens a block. One document is even; of these three, rank 1 has both halves' ends."""
    layout = Layout(2, context=2)
    assert compute_of(layout, (64,)) == pytest.approx(compute_of(Layout(), (64,)) / 2)
    # Rank 0: tokens 0 to 15 and 48 to 63, with nothing before them. Of rank 1's, 16 see 16 to 32 keys.
    whole = 16**2 / 2
    pairs = max(2 * whole, 16 * 16 + 2 * whole)
    products, head = 32 * (64 * 16 * 12 + 3 * 64 * 128), 32 * 64 * 256
    by_hand = 8 * 3 * (8 * (2 * products + 4 * 4 * 16 * pairs) + 2 * head)
    assert compute_of(layout, (32, 16, 16)) * 1e12 == pytest.approx(by_hand)


def test_what_a_context_rank_copies() -> None:
    """By hand, of one document on two ranks: rank 0 sees 16 and 64 keys, rank 1 32 and 48."""
    gpu = PLAIN.model_copy(update={"copy_bandwidth": 1.0})
    keys, queries, own, seen = 2 * 2 * 2 * 16, 2 * 4 * 16, 32, 80
    forward = 2 * own * keys + 2 * seen * keys + 2 * own * queries
    backward = 64 * keys + 3 * seen * keys + 2 * own * queries

    def copied(**changes: Any) -> float:
        layouts = Layout(2, context=2), Layout(2, tensor=2, sequence=True)
        cp, tp = (small(layout, gpu, **changes).compute / 8 / 8 * 1e9 for layout in layouts)
        return cp - tp

    assert copied() == pytest.approx(forward + backward)
    assert copied(recompute={"mode": "full"}) == pytest.approx(2 * forward + backward)


def test_known_sequences_are_followed() -> None:
    """Replicas wait for the one with more to do, and dealing evenly helps."""
    config, short, long = small_stage(64, 4), Content((16,) * 4), Content((64,))

    def time(*contents: Content, dealing: str = "in_order") -> StepTime:
        stage = config.model_copy(update={"parallel": config.parallel.model_copy(update={"dealing": dealing})})
        return step_time(stage, SMALL, Layout(2), PLAIN, Workload.known(contents))

    fast, slow = (time(*[one] * 4).total for one in (short, long))
    assert time(long, short, long, short).total == pytest.approx(slow)
    assert time(long, short, long, short, dealing="evenly").total == pytest.approx((fast + slow) / 2)
    assert time(long, short, long, short).flops == pytest.approx(
        (time(*[short] * 4).flops + time(*[long] * 4).flops) / 2
    )


def test_known_images_are_dealt_whole() -> None:
    """One image cannot be shared; four alike can."""
    model = Architecture.from_preset("tiny")
    config = small_stage(64, 8, train={"tower": 1, "projector": 1, "decoder": 1})

    def images(layout: Layout, *patches: int) -> float:
        with_, without = (
            step_time(config, model, layout, PLAIN, Workload.known([Content((64,), one)] * 8)).compute
            for one in (patches, ())
        )
        return with_ - without

    layout = Layout(4, tensor=2, sequence=True, context=2)
    assert images(layout, 8) == pytest.approx(images(Layout(), 8))
    assert images(layout, 8, 8, 8, 8) == pytest.approx(images(Layout(), 8))


def test_uneven_sequences_cost_a_pipeline_more() -> None:
    config, short, long = small_stage(64, 4), Content((4,) * 16), Content((64,))

    def bubble(*contents: Content) -> float:
        return step_time(config, SMALL, Layout(2, pipeline=2, virtual=2), PLAIN, Workload.known(contents)).bubble

    assert bubble(short, long, short, long) > max(bubble(*[short] * 4), bubble(*[long] * 4))
