"""Rotary positions against their formula in double precision."""

from __future__ import annotations

import torch

from megatron_apriel.model.rotary import decoder_rotary, split_and_rotate, tower_rotary


def test_decoder_angles_are_position_times_frequency() -> None:
    positions, theta, size = torch.tensor([0, 1, 7, 49151]), 1e9, 8
    cosine, sine = decoder_rotary(positions, size, theta)
    assert cosine.shape == sine.shape == (4, size // 2)
    angles = positions[:, None].double() * theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    # float32 angles: half a unit in the last place at 49151 is 2e-3.
    torch.testing.assert_close(cosine.double(), angles.cos(), rtol=0, atol=5e-3)
    torch.testing.assert_close(sine.double(), angles.sin(), rtol=0, atol=5e-3)


def test_rows_take_even_frequencies_and_columns_odd_ones() -> None:
    size, theta = 8, 1e4
    frequencies = [theta ** (-2 * pair / size) for pair in range(size // 2)]
    cosine, sine = tower_rotary(torch.tensor([3]), torch.tensor([5]), size, theta)
    angles = torch.tensor([3 * frequencies[0], 3 * frequencies[2], 5 * frequencies[1], 5 * frequencies[3]])
    torch.testing.assert_close(cosine[0], angles.cos())
    torch.testing.assert_close(sine[0], angles.sin())


def test_queries_and_keys_are_turned_as_complex_numbers_and_values_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, groups, queries, size = 5, 2, 3, 8
    projected = torch.randn(tokens, 1, groups, (queries + 2) * size, generator=generator, dtype=torch.float64)
    rotary = decoder_rotary(torch.arange(tokens), size, 100.0)
    query, key, value = split_and_rotate(projected, queries, rotary, fused=False)
    heads = projected.view(tokens, groups, queries + 2, size)
    turn = torch.complex(rotary[0].double(), rotary[1].double())[:, None, None]
    turned = torch.complex(heads[..., : size // 2], heads[..., size // 2 :]) * turn
    turned = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(query, turned[:, :, :queries].reshape(tokens, -1, size))
    torch.testing.assert_close(key, turned[:, :, queries])
    assert torch.equal(value, heads[:, :, queries + 1])


def test_cosine_and_sine_but_not_angles_are_rounded_to_the_type_of_the_activations() -> None:
    rotary = decoder_rotary(torch.arange(49000, 49152), 128, 1e9)
    ones = torch.ones(152, 1, 1, 3 * 128)
    exact, _, _ = split_and_rotate(ones, 1, rotary, fused=False)
    rounded, _, _ = split_and_rotate(ones.bfloat16(), 1, rotary, fused=False)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() <= 3 * 2**-8
