"""Dense peak FLOP/s of accelerators by compute dtype. Pure: no torch.

MFU divides by the *dense* peak of the dtype that the matmuls run in. Makers print larger figures beside it: with 2:4
sparsity, which a dense model does not use, twice the dense one; in fp8 twice the bf16 one. So the "4,500 TFLOP/s" of a
B200 is its fp8 dense peak (or bf16 with sparsity); its bf16 dense peak is 2,250, and an MFU of bf16 training over 4,500
would read half of what it is.

A device name is known only if *every* word of it is: the words that a row needs, and otherwise those that carry no
information about speed on that part. So a variant that is slower under almost the same name (a MIG slice, a Laptop
part, an "RTX 4090 D", an "RTX A1000") has no peak here rather than its neighbour's. For such a device give the peak by
hand.
"""

import dataclasses
import re

from raytrain.errors import unknown_value

DTYPES = ("float32", "tf32", "float16", "bfloat16", "float8_e4m3fn")
ALIASES = {"fp8": "float8_e4m3fn"}
_VENDOR_WORDS = frozenset({"NVIDIA", "TESLA", "AMD"})


@dataclasses.dataclass(frozen=True)
class Part:
    """One device part: the words of its name, its dense peaks in TFLOP/s by dtype, and the page that states them."""

    needs: frozenset[str]
    may_have: frozenset[str]
    peaks: dict[str, float]
    source: str


def peak_flops(device_name: str, dtype: str) -> float | None:
    """The dense peak of one device in FLOP/s, or None if the device, or this dtype on it, is unknown.

    `device_name` is as `torch.cuda.get_device_name()` gives it; `dtype` is bfloat16, float16, float32 (without tensor
    cores), tf32 (float32 matmuls on tensor cores), float8_e4m3fn or its alias fp8.

    Raises UserError for another dtype.
    """
    dtype = ALIASES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise unknown_value("dtype", dtype, (*DTYPES, *ALIASES))
    words = frozenset(re.findall(r"[A-Z0-9]+", device_name.upper()))
    for part in PARTS:
        if part.needs <= words <= part.needs | part.may_have | _VENDOR_WORDS:
            peak = part.peaks.get(dtype)
            return None if peak is None else peak * 1e12
    return None


def _part(
    needs: str,
    source: str,
    *,
    may_have: str = "",
    fp32: float | None = None,
    tf32: float | None = None,
    fp16: float | None = None,
    bf16: float | None = None,
    fp8: float | None = None,
) -> Part:
    """`fp16` is `bf16` where it is not given: tensor cores since Ampere run both alike, adding up in float32."""
    given = dict(zip(DTYPES, (fp32, tf32, bf16 if fp16 is None else fp16, bf16, fp8), strict=True))
    peaks = {dtype: peak for dtype, peak in given.items() if peak is not None}
    return Part(frozenset(needs.split()), frozenset(may_have.split()), peaks, source)


_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_A100 = "https://www.nvidia.com/en-us/data-center/a100/"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_BLACKWELL = "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703"
_INSTINCT = "https://www.amd.com/en/products/accelerators/instinct"
_TORCHTITAN = "https://github.com/pytorch/torchtitan/blob/main/torchtitan/tools/utils.py"
_TPU = "https://cloud.google.com/tpu/docs"

# fmt: off
PARTS = (
    # Volta: no bf16, no tf32.
    _part("V100 SXM2", _V100, may_have="16GB 32GB", fp32=15.7, fp16=125),
    _part("V100 PCIE", _V100, may_have="16GB 32GB", fp32=14, fp16=112),
    _part("V100S PCIE", _V100, may_have="32GB", fp32=16.4, fp16=130),
    # Ampere
    _part("A100", _A100, may_have="SXM4 PCIE 40GB 80GB", fp32=19.5, tf32=156, bf16=312),
    _part("A10G", "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf",
          fp32=35, tf32=35, bf16=70),
    # Hopper. The name of the SXM5 part has HBM3 rather than SXM.
    _part("H100 HBM3", _H100, may_have="80GB", fp32=67, tf32=494.5, bf16=989, fp8=1979),
    _part("H100 PCIE", _H100, may_have="80GB", fp32=51, tf32=378, bf16=756, fp8=1513),
    _part("H100 NVL", _H100, fp32=60, tf32=417.5, bf16=835.5, fp8=1671),
    _part("H200", _H200, fp32=67, tf32=494.5, bf16=989, fp8=1979),
    _part("H200 NVL", _H200, fp32=60, tf32=417.5, bf16=835.5, fp8=1671),
    _part("GH200", "https://www.nvidia.com/en-us/data-center/grace-hopper-superchip/",
          may_have="120GB 480GB", fp32=67, tf32=494.5, bf16=989, fp8=1979),
    # Its maker has no public page for it; torchtitan cites the press.
    _part("H20", _TORCHTITAN, fp32=44, tf32=74, bf16=148, fp8=296),
    # Ada
    _part("L4", "https://www.nvidia.com/en-us/data-center/l4/", fp32=30.3, tf32=60, bf16=121, fp8=242.5),
    _part("L40S", "https://www.nvidia.com/en-us/data-center/l40s/", fp32=91.6, tf32=183, bf16=362.05, fp8=733),
    _part("GEFORCE RTX 4090",
          "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
          fp32=82.6, tf32=82.6, bf16=165.2, fp8=330.3),
    # Blackwell. The datasheet's figures are with sparsity: halved here.
    _part("B200", _BLACKWELL, fp32=75, tf32=1100, bf16=2250, fp8=4500),
    _part("GB200", _BLACKWELL, fp32=80, tf32=1250, bf16=2500, fp8=5000),
    _part("B300", "https://www.nvidia.com/en-us/data-center/hgx/", may_have="SXM6 AC",
          fp32=75, tf32=1125, bf16=2250, fp8=4500),
    _part("GB300", "https://www.nvidia.com/en-us/data-center/gb300-nvl72/", fp32=80, tf32=1250, bf16=2500, fp8=5000),
    _part("GEFORCE RTX 5090",
          "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
          fp32=104.8, tf32=104.8, bf16=209.5, fp8=419),
    # AMD. An MI250X holds two dies and shows each as a device: the figures are one die's.
    _part("INSTINCT MI250X", f"{_INSTINCT}/mi200/mi250x.html", fp32=23.95, bf16=191.5),
    _part("INSTINCT MI300X", f"{_INSTINCT}/mi300/mi300x.html", fp32=163.4, tf32=653.7, bf16=1307.4, fp8=2614.9),
    _part("INSTINCT MI325X", f"{_INSTINCT}/mi300/mi325x.html", fp32=163.4, tf32=653.7, bf16=1307.4, fp8=2614.9),
    _part("INSTINCT MI355X", f"{_INSTINCT}/mi350/mi355x.html", fp32=157.3, bf16=2500, fp8=5000),
    # TPUs, a chip
    _part("TPU V4", f"{_TPU}/v4", bf16=275),
    _part("TPU V5 LITE", f"{_TPU}/v5e", bf16=197),
    _part("TPU V5", f"{_TPU}/v5p", bf16=459),
    _part("TPU V6 LITE", f"{_TPU}/v6e", bf16=918, fp8=918),
)
# fmt: on

# Bytes of memory of parts that a plan may be for, from the pages above.
MEMORY = {
    "A100": 80e9,
    "H100": 80e9,
    "H200": 141e9,
    "B200": 180e9,
    "GB200": 186e9,
    "L4": 24e9,
    "L40S": 48e9,
    "GEFORCE RTX 4090": 24e9,
    "GEFORCE RTX 5090": 32e9,
    "INSTINCT MI300X": 192e9,
    "INSTINCT MI325X": 256e9,
}
