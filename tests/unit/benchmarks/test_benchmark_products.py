"""What products alone add up to, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks import products
from benchmarks.products import Figures, Weight, ceiling, row, summary, weights
from benchmarks.sustained import Sustained
from megatron_apriel.errors import ExitCode
from megatron_apriel.formats.architecture import Architecture

DECODER = Architecture.from_preset("apriel-15b").with_layers(48).decoder
ATTENTION = 48 * 2 * 8192**2 * 32 * 128
"""Forward operations of attention at 8192 tokens."""


def test_every_matrix_of_a_layer_and_of_the_head_is_there() -> None:
    *layer, head = weights(DECODER, 8192)
    assert sum(one.outputs * one.inputs for one in layer) == DECODER.layer_parameters - 2 * 5120
    assert head.in_head and (head.outputs, head.inputs) == (131072, 5120)
    assert head.tokens * head.repeats == 8192


def test_ceiling_counts_by_the_rule_for_flops() -> None:
    layer = 20.0
    ms, tflops = ceiling(DECODER, 8192, layer, 50.0, 3.5)
    assert ms == pytest.approx(48 * 23.5 + 50)
    linear = 2 * 8192 * (48 * (DECODER.layer_parameters - 2 * 5120) + 131072 * 5120)
    assert tflops == pytest.approx(3 * (linear + ATTENTION) / (ms * 1e9))


def test_products_are_added_up_as_often_as_they_come() -> None:
    slow, fast = Sustained(2.0, 1.4), Sustained(1.0, None)
    found = [
        Figures(Weight("down", 5120, 14336, 8192), "forward", slow, fast, 8),
        Figures(Weight("head", 131072, 5120, 4096, repeats=2), "forward", slow, slow, 8),
    ]
    taken, best = summary(found, DECODER, 8192, attention_ms=3.0)
    assert "2.00 ms for the products of a layer" in taken and "4.0 ms for the head's" in taken
    assert "1.00 ms for the products of a layer" in best and "48 layers take 196 ms" in best


def test_row_tells_rate_and_power_and_the_best_only_where_it_is_another() -> None:
    weight = Weight("down", 5000, 1000, 1000)
    assert row(Figures(weight, "forward", Sustained(2.0, 1.4), Sustained(1.0, None), 8))[3:] == [
        *("2.000", "5", "700"),
        *("1.000", "10", "-"),
        "8",
    ]
    same = Sustained(2.0, 1.4)
    assert row(Figures(weight, "forward", same, same, 8))[6:9] == ["-", "-", "-"]


def test_refuses_what_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert products.main(["--tokens", "100"]) == ExitCode.USAGE
    assert "--tokens=100" in capsys.readouterr().err
