"""The precision of a training step: what the hardware multiplies, and what a run uses."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.optim import AmpOptimWrapper

from gersp_mm.engine.optim import BFloat16OptimWrapper

CPUINFO = Path("/proc/cpuinfo")
BF16_CAPABILITY = (8, 0)  # From this compute capability on, NVIDIA's GPUs multiply bfloat16.
OTHER_DEVICES = ("npu", "mlu", "mps", "musa")  # MMEngine's names
PRECISION = "precision"  # key of a checkpoint's and an export's meta


class Choice(NamedTuple):
    """A precision.

    Attributes:
        precision: ``'bf16'``, ``'fp16'`` or ``'fp32'``.
        reason: Why it is used, in words.
    """

    precision: str
    reason: str


def choose_precision(several: bool = False) -> Choice:
    """Choose the precision in which this machine trains fastest.

    It is bf16 where the hardware multiplies it (GPUs from compute capability 8.0 on, and CPUs by
    :func:`bf16_unit`), fp16 on older GPUs, and fp32 elsewhere. Emulated bfloat16, which PyTorch
    calls supported, does not count.

    Args:
        several: Whether a process runs on each GPU, so that the oldest of them decides.
    """
    if torch.cuda.is_available():
        numbers = range(torch.cuda.device_count()) if several else [torch.cuda.current_device()]
        oldest = min(numbers, key=torch.cuda.get_device_capability)
        name = torch.cuda.get_device_name(oldest)
        if torch.cuda.get_device_capability(oldest) >= BF16_CAPABILITY:
            return Choice("bf16", f"{name} multiplies it")
        return Choice("fp16", f"{name} multiplies no bf16")
    if get_device() in OTHER_DEVICES:
        return Choice("fp32", f"nothing is known of bf16 on {get_device()}")
    if unit := bf16_unit():
        return Choice("bf16", f"this processor multiplies it ({unit})")
    return Choice("fp32", "this processor has neither AMX nor AMD's AVX-512 BF16")


def bf16_unit() -> str | None:
    """Name the unit of the processor that makes bfloat16 faster than fp32, if it has one.

    It is AMX, or AVX-512 BF16 on processors of AMD. On those of Intel, AVX-512 BF16 alone was
    slower than fp32. Linux lists what processor and kernel have; elsewhere, there is none.
    ``ONEDNN_MAX_CPU_ISA`` may keep oneDNN from using a unit.
    """
    if not torch.backends.mkldnn.is_available() or not CPUINFO.is_file():
        return None
    text = CPUINFO.read_text()
    found = re.search(r"^flags\s*:(.*)$", text, re.M)
    flags = set(found[1].split()) if found else set()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    free = limit in ("", "DEFAULT", "ALL")
    if {"amx_tile", "amx_bf16"} <= flags and (free or "AMX" in limit):
        return "AMX"
    by_amd = re.search(r"^vendor_id\s*:\s*AuthenticAMD$", text, re.M) is not None
    if by_amd and "avx512_bf16" in flags and (free or re.search("AMX|FP16|BF16", limit)):
        return "AVX-512 BF16"
    return None


def precision_of(wrapper: Any) -> str:
    """Return the precision in which an optimizer wrapper has the forward pass run."""
    if isinstance(wrapper, BFloat16OptimWrapper):
        return "bf16"
    if isinstance(wrapper, AmpOptimWrapper):
        return "bf16" if wrapper.cast_dtype == torch.bfloat16 else "fp16"
    return "fp32"


def described(wrapper: Any) -> str:
    """Say in one line which precision a run uses, and which one this machine would choose."""
    used, choice = precision_of(wrapper), choose_precision(several=get_world_size() > 1)
    if used == choice.precision:
        return f"precision {used}: {choice.reason}"
    return f"precision {used}; --amp auto would choose {choice.precision}: {choice.reason}"
