"""Peaks by device name and dtype, against the makers' sheets; and the names that other tools mistake."""

import pytest

from raytrain.accounting.hardware import PARTS, peak_flops
from raytrain.errors import UserError

# Dense TFLOP/s in bfloat16 and float8 of the names that devices report of themselves; None where the part has no such
# tensor cores. From the makers' data sheets, halved where they print figures with sparsity.
BF16_AND_FP8 = {
    "Tesla V100-SXM2-16GB": (None, None),
    "NVIDIA A100-SXM4-80GB": (312, None),
    "NVIDIA A100 80GB PCIe": (312, None),
    "NVIDIA A100-PCIE-40GB": (312, None),
    "A100-SXM4-40GB": (312, None),
    "NVIDIA H100 80GB HBM3": (989, 1979),
    "NVIDIA H100 PCIe": (756, 1513),
    "NVIDIA H100 NVL": (835.5, 1671),
    "NVIDIA H200": (989, 1979),
    "NVIDIA H200 NVL": (835.5, 1671),
    "NVIDIA GH200 480GB": (989, 1979),
    "NVIDIA H20": (148, 296),
    "NVIDIA B200": (2250, 4500),
    "NVIDIA GB200": (2500, 5000),
    "NVIDIA B300 SXM6 AC": (2250, 4500),
    "NVIDIA GB300": (2500, 5000),
    "NVIDIA L4": (121, 242.5),
    "NVIDIA L40S": (362.05, 733),
    "NVIDIA A10G": (70, None),
    "NVIDIA GeForce RTX 4090": (165.2, 330.3),
    "NVIDIA GeForce RTX 5090": (209.5, 419),
    "AMD Instinct MI250X": (191.5, None),  # one of its two dies, which is what a process sees
    "AMD Instinct MI300X": (1307.4, 2614.9),
    "AMD Instinct MI325X": (1307.4, 2614.9),
    "AMD Instinct MI355X": (2500, 5000),
    "TPU v4": (275, None),
    "TPU v5 lite": (197, None),
    "TPU v5": (459, None),
    "TPU v6 lite": (918, 918),
}

UNKNOWN = [
    "",
    "cpu",
    "NVIDIA",
    "NVIDIA RTX A1000",  # taken for an A100 by its first letters
    "NVIDIA RTX A1000 Laptop GPU",
    "NVIDIA A10",  # 125 TFLOP/s, where the A10G has 70
    "NVIDIA A100-SXM-64GB",  # a custom part with more cores
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA H100",  # PCIe or SXM?
    "NVIDIA H800",
    "NVIDIA H20-3e",
    "NVIDIA L40",  # neither an L4 nor an L40S
    "NVIDIA L40G",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5090 D",
    "NVIDIA GeForce RTX 4080 SUPER",
    "AMD Instinct MI250",
    "AMD Instinct MI250X/MI250",
    "AMD Instinct MI300A",
    "AMD Ryzen 9 7950X 16-Core Processor",
]


@pytest.mark.parametrize("name", BF16_AND_FP8)
def test_peaks_of_known_devices(name: str):
    """Catches: a sparse figure for the dense one, one part taken for its neighbour (GB200 for B200), a lost factor."""
    for dtype, tflops in zip(("bfloat16", "float8_e4m3fn"), BF16_AND_FP8[name], strict=True):
        assert peak_flops(name, dtype) == (None if tflops is None else pytest.approx(tflops * 1e12))
    assert peak_flops(name.lower(), "fp8") == peak_flops(name, "float8_e4m3fn")


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_device_has_no_peak(name: str):
    """Catches: a default, or a part of a name taken for the whole of it."""
    assert peak_flops(name, "bfloat16") is None


def test_other_dtypes():
    """Catches: bf16 claimed for Volta, whose tensor cores do float16 alone; tf32 taken for plain float32."""
    v100 = ("Tesla V100-SXM2-16GB", "Tesla V100-PCIE-32GB", "Tesla V100S-PCIE-32GB")
    assert [peak_flops(name, "float16") for name in v100] == [125e12, 112e12, 130e12]
    assert [peak_flops(name, "bfloat16") for name in v100] == [None, None, None]
    a100, h100 = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"
    assert (peak_flops(a100, "float32"), peak_flops(a100, "tf32"), peak_flops(a100, "float16")) == (
        19.5e12,
        156e12,
        312e12,
    )
    assert (peak_flops(h100, "float32"), peak_flops(h100, "tf32"), peak_flops(h100, "float16")) == (
        67e12,
        494.5e12,
        989e12,
    )


def test_an_unknown_dtype_is_a_mistake():
    """Catches: a misspelt dtype that reads as an unknown device, so that MFU silently goes missing."""
    for name in ("NVIDIA H200", "cpu"):
        with pytest.raises(UserError, match=r"Unknown dtype: 'bfloat61'.*Did you mean bfloat16"):
            peak_flops(name, "bfloat61")


def test_every_row_is_sourced_and_sensible():
    """Catches: a row without a source, two rows for one name, a slip of a digit or a sparse figure among dense ones."""
    assert len({part.needs for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert part.source.startswith("https://")
        peaks = part.peaks
        assert all(10 < tflops < 6000 for tflops in peaks.values())
        if {"bfloat16", "float8_e4m3fn"} <= peaks.keys() and "TPU" not in part.needs:
            assert peaks["float8_e4m3fn"] / peaks["bfloat16"] == pytest.approx(2, rel=0.03)
        if {"tf32", "bfloat16"} <= peaks.keys():
            assert peaks["bfloat16"] / peaks["tf32"] == pytest.approx(2, rel=0.03)
