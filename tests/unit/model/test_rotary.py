"""Rotary positions against their formula in double precision."""

from __future__ import annotations

import torch

from megatron_apriel.model.rotary import decoder_angles, split_and_rotate, tower_angles


def test_decoder_angles_are_position_times_frequency() -> None:
    positions, theta, size = torch.tensor([0, 1, 7, 49151]), 1e9, 8
    angles = decoder_angles(positions, size, theta)
    assert angles.shape == (4, 1, 1, size)
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    expected = positions[:, None].double() * torch.cat([frequencies, frequencies])
    torch.testing.assert_close(angles[:, 0, 0].double(), expected, rtol=1e-6, atol=0)


def test_rows_take_even_frequencies_and_columns_odd_ones() -> None:
    size, theta = 8, 1e4
    frequencies = [theta ** (-2 * pair / size) for pair in range(size // 2)]
    angles = tower_angles(torch.tensor([3]), torch.tensor([5]), size, theta)
    expected = [3 * frequencies[0], 3 * frequencies[2], 5 * frequencies[1], 5 * frequencies[3]]
    torch.testing.assert_close(angles[0, 0, 0], torch.tensor(expected * 2))


def test_queries_and_keys_are_turned_as_complex_numbers_and_values_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, groups, queries, size = 5, 2, 3, 8
    projected = torch.randn(tokens, 1, groups, (queries + 2) * size, generator=generator, dtype=torch.float64)
    angles = decoder_angles(torch.arange(tokens), size, 100.0)
    parts = [queries * size, size, size]
    query, key, value = split_and_rotate(projected, parts, angles, fused=False)
    heads = projected.view(tokens, groups, queries + 2, size)
    turn = torch.exp(1j * angles[..., : size // 2].double())
    turned = torch.complex(heads[..., : size // 2], heads[..., size // 2 :]) * turn
    turned = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(query, turned[:, :, :queries].reshape(tokens, -1, size), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(key, turned[:, :, queries], rtol=1e-6, atol=1e-6)
    assert torch.equal(value, heads[:, :, queries + 1])


def test_cosine_and_sine_but_not_angles_are_rounded_to_the_type_of_the_activations() -> None:
    angles = decoder_angles(torch.arange(49000, 49152), 128, 1e9)
    ones = torch.ones(152, 1, 1, 3 * 128)
    exact, _, _ = split_and_rotate(ones, [128, 128, 128], angles, fused=False)
    rounded, _, _ = split_and_rotate(ones.bfloat16(), [128, 128, 128], angles, fused=False)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() <= 3 * 2**-8
