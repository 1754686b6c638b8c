"""Rotary positions against their formula in double precision."""

from __future__ import annotations

import math

import torch

from megatron_apriel.model.rotary import apply_rotary, decoder_rotary, tower_rotary


def test_decoder_angles_are_position_times_frequency() -> None:
    positions, theta, size = torch.tensor([0, 1, 7, 49151]), 1e9, 8
    cosine, sine = decoder_rotary(positions, size, theta, torch.float32)
    assert cosine.shape == (4, 1, size)
    for token, position in enumerate(positions.tolist()):
        for pair in range(size // 2):
            angle = position * theta ** (-2 * pair / size)
            for place in (pair, pair + size // 2):
                assert abs(cosine[token, 0, place] - math.cos(angle)) < 5e-3
                assert abs(sine[token, 0, place] - math.sin(angle)) < 5e-3


def test_angles_are_not_rounded_to_the_type_of_the_activations() -> None:
    positions = torch.arange(49000, 49152)
    exact, _ = decoder_rotary(positions, 128, 1e9, torch.float32)
    rounded, _ = decoder_rotary(positions, 128, 1e9, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() <= 2**-8


def test_rows_take_even_frequencies_and_columns_odd_ones() -> None:
    size, theta = 8, 1e4
    frequencies = [theta ** (-2 * pair / size) for pair in range(size // 2)]
    cosine, sine = tower_rotary(torch.tensor([3]), torch.tensor([5]), size, theta, torch.float32)
    angles = [3 * frequencies[0], 3 * frequencies[2], 5 * frequencies[1], 5 * frequencies[3]]
    torch.testing.assert_close(cosine[0, 0], torch.tensor(angles * 2).cos())
    torch.testing.assert_close(sine[0, 0], torch.tensor(angles * 2).sin())


def test_halves_of_a_head_are_turned_as_complex_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(5, 3, 8, generator=generator)
    rotary = decoder_rotary(torch.arange(5), 8, 100.0, torch.float32)
    turn = torch.complex(rotary[0][..., :4], rotary[1][..., :4])
    turned = torch.complex(heads[..., :4], heads[..., 4:]) * turn
    torch.testing.assert_close(apply_rotary(heads, rotary), torch.cat([turned.real, turned.imag], dim=-1))
