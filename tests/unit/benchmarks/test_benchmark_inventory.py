"""Kernels' names to groups, a trace to an inventory, and the least time by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import inventory as command
from benchmarks.kernel_groups import BANDWIDTH, BF16_PRODUCTS, FP8_PRODUCTS, group_of, inventory, least_ms
from megatron_apriel.formats.architecture import Architecture


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("nvjet_sm90_qqtst_128x256_128x6_2x1_v_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_fp8_tilesize128", "matrix products"),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<...>>", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_128x128x128", "attention"),
        ("void transformer_engine::cast_transpose_general_kernel<float8_e4m3>", "quantisation"),
        ("void transformer_engine::normalization::rmsnorm_fwd_general_kernel", "norms"),
        ("void transformer_engine::multi_tensor_adam::multi_tensor_apply_kernel", "optimizer"),
        ("void multi_tensor_apply_kernel<..., L2NormFunctor<float>>", "optimizer"),
        ("_swiglu_forward_kernel", "activation"),
        ("_statistics_kernel", "loss"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "copies and other"),
        ("Memcpy DtoD (Device -> Device)", "copies and other"),
        ("void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<...>>", "copies and other"),
        ("void cast_transpose_optimized_kernel(__nv_bfloat16 const*)", "quantisation"),
        ("void cudnn::fusion::compute_dot_do_o_ragged_specialized<true, 128>", "attention"),
        ("kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90_object", "attention"),
        ("mystery", "unknown"),
    ],
)
def test_groups(kernel: str, group: str) -> None:
    assert group_of(kernel) == group


def test_inventory_of_overlapping_kernels() -> None:
    def kernel(name: str, start: float, duration: float) -> dict[str, object]:
        return {"cat": "kernel", "name": name, "ts": start, "dur": duration}

    events = [
        {"cat": "cpu_op", "name": "gemm", "ts": 0, "dur": 9e9},
        kernel("gemm", 1000, 2000),
        kernel("mystery", 2000, 500),  # on another stream, within the first
        kernel("gemm", 4000, 1000),
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 5500, "dur": 500},
    ]
    found = inventory(reversed(events))
    assert found.span_ms == 5.0
    assert found.groups == {"matrix products": 3.0, "unknown": 0.5, "copies and other": 0.5, "gaps": 1.5}
    assert found.biggest("matrix products", 1) == [("gemm", 3.0, 2)]
    assert found.longest_gaps == [(1.0, "gemm", "gemm"), (0.5, "gemm", "Memcpy HtoD")]


def test_least_time_of_products_and_bytes() -> None:
    architecture = Architecture.from_preset("apriel-15b").with_layers(8)
    found = least_ms(architecture, 8192, 8192**2, 1, fp8=True)
    layer = 5120 * 128 * (32 + 8 + 8 + 32) + 3 * 5120 * 14336
    products = 6 * 8192 * (8 * layer / FP8_PRODUCTS + 131072 * 5120 / BF16_PRODUCTS)
    assert found["matrix products"] == pytest.approx(1e3 * products)
    assert found["activation"] == pytest.approx(1e3 * 8192 * 8 * 16 * 14336 / BANDWIDTH)
    assert found["optimizer"] == pytest.approx(1e3 * 34 * architecture.decoder.parameters / BANDWIDTH)
    twice = least_ms(architecture, 8192, 8192**2, 2, fp8=False)
    assert twice["norms"] == pytest.approx(2 * found["norms"])
    assert twice["optimizer"] == found["optimizer"]
    assert twice["quantisation"] == 0


def test_the_command_in_miniature(tmp_path: Path) -> None:
    """On a CPU there are no kernels; the way from the model to the files is the same."""

    script = Path(command.__file__)
    arguments = ["--tiny", "--subject", "ours-bf16", "--layers", "1", "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ms a step without the profiler" in done.stdout
    assert len(list(tmp_path.glob("inventory-*.md"))) == 1
