"""The precision by the processor: chosen by capability, said in the log, kept in the files."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from gersp_mm.engine import launch, precision
from gersp_mm.engine.optim import BFloat16OptimWrapper
from gersp_mm.utils.errors import UserError

AMX = "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n"
AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n"
NO_AMX = AMX.replace(" amx_bf16", "").replace(" amx_tile", "")
FP32 = dict(type="OptimWrapper", accumulative_counts=2)
BF16 = dict(type="gersp_mm.BFloat16OptimWrapper", accumulative_counts=2)
FP16 = dict(FP32, type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")


def amp_config(**wrapper):
    return Config(dict(optim_wrapper=dict(FP32, **wrapper)))


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Return a function that makes this machine a CPU with the given /proc/cpuinfo."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def fake(cpuinfo):
        file = tmp_path / "cpuinfo"
        if cpuinfo is not None:
            file.write_text(cpuinfo)
        monkeypatch.setattr(precision, "CPUINFO", file)

    return fake


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that gives this machine GPUs of some compute capabilities."""

    def fake(*capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # by emulation
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n=0: capabilities[n])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda n=0: f"GPU {n}")

    return fake


@pytest.mark.parametrize(
    "cpuinfo, isa, wrapper, chosen",
    [
        (AMX, None, BF16, "bf16"),
        (AMX, "AVX512_CORE_AMX", BF16, "bf16"),
        (AMX, "AVX512_CORE_BF16", FP32, "fp32"),  # oneDNN may not use AMX
        (NO_AMX, None, FP32, "fp32"),  # Intel's AVX-512 BF16 alone is slower than fp32
        (AMD, None, BF16, "bf16"),
        (AMD, "AVX512_CORE_BF16", BF16, "bf16"),
        (AMD, "AVX512_CORE_VNNI", FP32, "fp32"),  # oneDNN may not use it
        (AMD.replace("avx512_bf16", ""), None, FP32, "fp32"),
        (AMX.replace("amx_tile", ""), None, FP32, "fp32"),
        ("", None, FP32, "fp32"),
        (None, None, FP32, "fp32"),  # not Linux
    ],
)
def test_auto_on_cpus_is_bf16_where_a_unit_multiplies_it(
    cpu, monkeypatch, cpuinfo, isa, wrapper, chosen
):
    cpu(cpuinfo)
    if isa:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    cfg = amp_config()
    choice = launch.use_amp(cfg, "auto")
    assert cfg.optim_wrapper.to_dict() == wrapper
    assert choice.precision == chosen
    assert ("AVX-512 BF16" if cpuinfo == AMD else "AMX") in choice.reason


@pytest.mark.parametrize(
    "capabilities, launcher, wrapper",
    [
        ([(8, 0)], "none", BF16),
        ([(9, 0), (7, 5)], "none", BF16),  # the other GPU takes no part
        ([(9, 0), (7, 5)], "pytorch", FP16),  # PyTorch emulates bf16 on it
        ([(7, 0)], "none", FP16),
    ],
)
def test_auto_on_gpus_is_bf16_from_capability_8_on(gpus, capabilities, launcher, wrapper):
    gpus(*capabilities)
    cfg = amp_config()
    cfg.launcher = launcher
    launch.use_amp(cfg, "auto")
    assert cfg.optim_wrapper.to_dict() == wrapper


def test_other_devices_stay_in_fp32(cpu, monkeypatch):
    cpu(AMX)
    monkeypatch.setattr(precision, "get_device", lambda: "mps")
    assert precision.choose_precision() == ("fp32", "nothing is known of bf16 on mps")


@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "gersp_mm.BFloat16OptimWrapper"])
def test_fp32_as_asked_for_replaces_the_configs_mixed_precision(kind):
    cfg = amp_config(loss_scale="dynamic", dtype="float16")
    cfg.optim_wrapper.type = kind
    assert launch.use_amp(cfg, "fp32") == ("fp32", "as asked for")
    assert cfg.optim_wrapper.to_dict() == FP32


def test_bf16_as_asked_for_on_any_cpu(cpu):
    cpu(NO_AMX)
    cfg = amp_config(loss_scale="dynamic", dtype="float16")
    launch.use_amp(cfg, "bf16")
    assert cfg.optim_wrapper.to_dict() == BF16


def test_fp16_on_cpus_is_refused(cpu):
    cpu(AMX)
    with pytest.raises(UserError, match="--amp fp16 needs a GPU. Use --amp auto"):
        launch.use_amp(amp_config(), "fp16")


def test_the_log_says_the_precision_and_the_choice(cpu):
    layer = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    cpu(AMX)
    reason = "this processor multiplies it (AMX)"
    assert precision.described(BFloat16OptimWrapper(sgd)) == f"precision bf16: {reason}"
    other = f"precision fp32; --amp auto would choose bf16: {reason}"
    assert precision.described(OptimWrapper(sgd)) == other
