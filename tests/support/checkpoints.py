"""Files of every public pre-training, in their own format, from networks with random weights."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torchvision
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from torch import nn

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
HALF = ([127.5] * 3, [127.5] * 3)
State = dict[str, torch.Tensor]


def random_resnet(depth: int = 18, seed: int = 0) -> nn.Module:
    """A torchvision ResNet in which no tensor could be swapped or left out unnoticed."""
    torch.manual_seed(seed)
    network = getattr(torchvision.models, f"resnet{depth}")()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return network.eval()


def plain_resnet(depth: int = 18, seed: int = 0) -> nn.Module:
    """A torchvision ResNet with one random value in each tensor, which needs no room in a file."""
    with torch.device("meta"):
        network = getattr(torchvision.models, f"resnet{depth}")()
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: (torch.rand((), generator=generator) / 100).to(tensor.dtype).expand(tensor.shape)
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    return network.eval()


def backbone(network: nn.Module, prefix: str = "") -> State:
    state = network.state_dict()
    return {prefix + n: tensor for n, tensor in state.items() if not n.startswith("fc.")}


def by_position(network: nn.Module, prefix: str = "") -> State:
    parts = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    return {prefix + name: tensor for name, tensor in parts.state_dict().items()}


def mlp(prefix: str, *positions: int, size: int = 4) -> State:
    state = {}
    for position in positions:
        state[f"{prefix}{position}.weight"] = torch.randn(size, size)
        state[f"{prefix}{position}.bias"] = torch.randn(size)
    return state


@contextlib.contextmanager
def unknown_classes(*names: str) -> Iterator[list[type]]:
    """Classes of modules that are gone when the file is read."""
    before = dict(sys.modules)
    classes = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        base = dict if attribute in ("AttributeDict", "CfgNode") else object
        classes.append(type(attribute, (base,), {"__module__": module}))
        setattr(sys.modules[module], attribute, classes[-1])
    yield classes
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def save(content: Any, path: Path, legacy: bool = False) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def optimizer_state() -> dict[str, Any]:
    return dict(state={0: dict(momentum_buffer=torch.zeros(2))}, param_groups=[dict(lr=0.03)])


# Each of these writes a file and returns nothing; `student` is what has to come out.


def released_gersp(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    state = {
        "queue": torch.randn(128, 16),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        **backbone(student, "encoder_q."),
        **mlp("proj_q.projector.", 0, 2),
        **mlp("pred_q.", 0),
        **backbone(teacher, "encoder_k."),
        **mlp("proj_k.projector.", 0, 2),
    }
    state |= {f"backbone.{n}": state[f"encoder_q.{n}"] for n in backbone(student)}
    state |= {n.replace("proj_q", "neck"): v for n, v in state.items() if n.startswith("proj_q")}
    meta = dict(mmcv_version="1.6.2", epoch=100, iter=4, config="model = dict(type='MoCoGeRSP')")
    save(dict(meta=meta, state_dict=state, optimizer=optimizer_state()), path)


def converted_gersp(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    save(dict(state_dict=OrderedDict(backbone(student, "backbone."))), path)


def own_training(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    cfg = dict(
        type="gersp_mm.GeRSP",
        backbone=dict(type="ResNet", depth=18, out_indices=(3,)),
        neck=dict(type="MoCoV2Neck", in_channels=512, hid_channels=8, out_channels=8),
        head=dict(type="gersp_mm.InfoNCEHead", temperature=0.2),
        natural_head=dict(type="LinearClsHead", num_classes=3, in_channels=512),
        queue_len=16,
        feat_dim=8,
    )
    model = MODELS.build(cfg)
    model.backbone.load_state_dict(backbone(student))
    model.teacher.backbone.load_state_dict(backbone(teacher))
    meta = dict(
        epoch=3,
        iter=9,
        cfg="model = dict(data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], "
        "type='gersp_mm.PairedDataPreprocessor'), type='gersp_mm.GeRSP')",
    )
    message_hub = dict(log_scalars={"train/loss": HistoryBuffer([1.0], [1])})
    content = dict(meta=meta, state_dict=model.state_dict(), message_hub=message_hub)
    save(dict(content, optimizer=optimizer_state()), path)


def mmpretrain_byol(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    neck = dict(
        type="NonLinearNeck", in_channels=512, hid_channels=8, out_channels=8, num_layers=2,
        with_bias=True, with_last_bn=False, with_avg_pool=True,
    )  # fmt: skip
    predictor = dict(neck, in_channels=8, with_avg_pool=False)
    model = MODELS.build(
        dict(
            type="BYOL",
            backbone=dict(type="ResNet", depth=18, out_indices=(3,)),
            neck=neck,
            head=dict(
                type="LatentPredictHead", loss=dict(type="CosineSimilarityLoss"),
                predictor=predictor,
            ),
        )
    )  # fmt: skip
    model.backbone.load_state_dict(backbone(student))
    model.target_net.module[0].load_state_dict(backbone(teacher))
    cfg = "model = dict(type='BYOL', backbone=dict(type='ResNet', depth=18))\n"
    save(dict(meta=dict(epoch=200, cfg=cfg), state_dict=model.state_dict()), path)


def mmselfsup_moco(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    state = {
        **backbone(student, "encoder_q.0."),
        **mlp("encoder_q.1.mlp.", 0, 2),
        **backbone(teacher, "encoder_k.0."),
        **mlp("encoder_k.1.mlp.", 0, 2),
        "queue": torch.randn(8, 16),
        **backbone(student, "backbone."),
    }
    save(dict(meta=dict(epoch=200), state_dict=state), path)


def torchvision_weights(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    save(student.state_dict(), path, legacy=True)


def timm_training(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    content = dict(
        epoch=300,
        arch="resnet18",
        state_dict=student.state_dict(),
        optimizer=optimizer_state(),
        version=2,
        args=argparse.Namespace(model="resnet18"),
        amp_scaler={},
        state_dict_ema=teacher.state_dict(),
        metric=80.0,
    )
    save(content, path)


def moco(path: Path, student: nn.Module, teacher: nn.Module, *heads: str, **more: Any) -> None:
    state: State = {"module.queue": torch.randn(128, 16), "module.queue_ptr": torch.zeros(1)}
    for name, network in (("encoder_q", student), ("encoder_k", teacher)):
        state |= backbone(network, f"module.{name}.")
        for head in heads:
            state[f"module.{name}.{head}.weight"] = torch.randn(4, 4)
            state[f"module.{name}.{head}.bias"] = torch.randn(4)
    arch = "resnet50" if "layer3.5.conv1.weight" in student.state_dict() else "resnet18"
    content = dict(epoch=200, arch=arch, state_dict=state, optimizer=optimizer_state())
    save(dict(content, **more), path, legacy=True)


def moco_v1(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    moco(path, student, teacher, "fc")


def moco_v2(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    moco(path, student, teacher, "fc.0", "fc.2")


def geo_aware(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    moco(path, student, teacher, "fc.0", "fc.2", geo_dict=mlp("", 0))


def lightning_state(student: nn.Module, teacher: nn.Module) -> State:
    state = {"queue": torch.randn(3, 128, 16), "queue_ptr": torch.zeros(3, 1)}
    for letter, network in (("q", student), ("k", teacher)):
        state |= by_position(network, f"encoder_{letter}.")
        for space in range(3):
            state |= mlp(f"heads_{letter}.{space}.", 0, 2)
    return state


def lightning(path: Path, student: nn.Module, teacher: nn.Module, datamodule: str = "") -> None:
    names = [
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        datamodule or "datasets.unused.Unused",
    ]
    with unknown_classes(*names) as (hparams, callback, data):
        content = {
            "epoch": 200,
            "global_step": 10,
            "pytorch-lightning_version": "1.1.8",
            "callbacks": {callback: dict(best_model_score=None)},
            "optimizer_states": [optimizer_state()],
            "lr_schedulers": [],
            "state_dict": lightning_state(student, teacher),
            "hparams_name": "kwargs",
            "hyper_parameters": hparams(base_encoder="resnet18", emb_dim=128),
        }
        if datamodule:
            content["hyper_parameters"]["datamodule"] = data()
        save(content, path)


def seco(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    lightning(path, student, teacher)


def caco_lightning(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    name = "datasets.seco_datamodule.ChangeAwareContrastMultiAugDataModule"
    lightning(path, student, teacher, name)


def caco(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    save(OrderedDict(by_position(student)), path)


def tov(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    leftovers = {"queue": torch.randn(4, 8), **mlp("projector.", 0, 2)}
    save(dict(state_dict=OrderedDict(backbone(student) | leftovers)), path, legacy=True)


def cmid(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    state = {
        "online_encoder.mask_token": torch.zeros(1, 8, 1, 1),
        **backbone(student, "online_encoder.model."),
        **backbone(teacher, "branch_encoder."),
        **mlp("online_projector.mlp.", 0, 3),
        **mlp("branch_projector.mlp.", 0, 3),
        **mlp("class_projector.mlp.", 0),
        "queue": torch.randn(8, 4),
    }
    with unknown_classes("Exploring.utils.metric.MetricStorage") as (storage,):
        content = dict(epoch=199, num_gpus=8, model=state, optimizer=optimizer_state())
        save(dict(content, metric_storage=storage()), path)


def cmid_backbone(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    save(OrderedDict(backbone(student)), path)


def rsp(path: Path, student: nn.Module, teacher: nn.Module) -> None:
    state = student.state_dict()
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][:51].clone(), torch.randn(51)
    with unknown_classes("yacs.config.CfgNode") as (node,):
        content = dict(model=state, optimizer=optimizer_state(), max_accuracy=98.99, epoch=299)
        save(dict(content, config=node(MODEL=node(TYPE="resnet"))), path)


class Case(NamedTuple):
    """A source's file, and what has to be found in it.

    Attributes:
        write: a function of this module.
        file: the name that its authors gave the file.
        source: value of ``--source``.
        method: as ``meta`` has to name it.
        epoch: epochs done.
        statistics: mean and std.
        left_out: tensors by group.
        trust: whether the file needs ``--trust``.
        sentinel: whether its images were stretched.
    """

    write: Callable[[Path, nn.Module, nn.Module], None]
    file: str
    source: str
    method: str
    epoch: int | None = None
    statistics: tuple[list[float], list[float]] = IMAGENET
    left_out: dict[str, int] = {}
    trust: bool = False
    sentinel: bool = False


QUEUE = dict(queue=2)
LIGHTNING = dict(teacher=120 + 12, projector=12, queue=2)
CASES = {
    "GeRSP, released": Case(
        released_gersp, "epoch_100.pth", "gersp", "GeRSP", 100,
        left_out={"teacher": 124, "projector": 8, "classifier": 2, "queue": 2,
                  "second name of the student": 120},
    ),
    "GeRSP-200, released": Case(
        released_gersp, "GeRSP200.pth", "gersp", "GeRSP-200", 100,
        left_out={"teacher": 124, "projector": 8, "classifier": 2, "queue": 2,
                  "second name of the student": 120},
    ),
    "GeRSP, converted": Case(converted_gersp, "CVT_epoch_100.pth", "gersp", "GeRSP"),
    "GeRSP-200, converted": Case(converted_gersp, "GeRSP_200.pth", "gersp", "GeRSP-200"),
    "our training": Case(
        own_training, "epoch_3.pth", "gersp", "GeRSP", 3, ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
        dict(teacher=124, projector=4, classifier=2, queue=2),
    ),
    "mmpretrain": Case(
        mmpretrain_byol, "epoch_200.pth", "mmlab", "BYOL", 200,
        left_out=dict(teacher=129, projector=16),
    ),
    "mmselfsup": Case(
        mmselfsup_moco, "epoch_200.pth", "mmlab", "unknown", 200,
        left_out={"teacher": 124, "second name of the student": 124, "queue": 1},
    ),
    "torchvision": Case(
        torchvision_weights, "resnet18-f37072fd.pth", "torchvision", "IMP",
        left_out=dict(classifier=2),
    ),
    "timm": Case(
        timm_training, "model_best.pth.tar", "timm", "IMP (timm)", 300,
        left_out=dict(classifier=2),
    ),
    "MoCo v1": Case(
        moco_v1, "moco_v1_200ep_pretrain.pth.tar", "moco", "MoCo v1", 200,
        left_out=dict(teacher=122, projector=2, queue=2),
    ),
    "MoCo v2": Case(
        moco_v2, "moco_v2_800ep_pretrain.pth.tar", "moco", "MoCo v2", 200,
        left_out=dict(teacher=124, projector=4, queue=2),
    ),
    "Geo-Aware, geo": Case(
        geo_aware, "checkpoint_0199.pth.tar", "geo-aware", "Geo-Aware", 200,
        left_out=dict(teacher=124, projector=4, queue=2),
    ),
    "Geo-Aware, tp": Case(
        moco_v2, "moco_tp.pth.tar", "geo-aware", "Geo-Aware", 200,
        left_out=dict(teacher=124, projector=4, queue=2),
    ),
    "SeCo": Case(
        seco, "seco_resnet18_1m.ckpt", "seco", "SeCo", 200, left_out=LIGHTNING, trust=True,
        sentinel=True,
    ),
    "CACo, .ckpt": Case(
        caco_lightning, "resnet18_caco_geo_1m_200.ckpt", "caco", "CACo", 200,
        left_out=LIGHTNING, trust=True, sentinel=True,
    ),
    "CACo, .pth": Case(caco, "resnet18_caco_geo_1m_200.pth", "caco", "CACo", sentinel=True),
    "TOV": Case(
        tov, "TOV_v1_model_pretrained_on_TOV-RS-balanced_ep800.pth.tar", "tov", "TOV",
        statistics=HALF, left_out=dict(projector=4, queue=1),
    ),
    "CMID": Case(
        cmid, "epoch_199.pth", "cmid", "CMID", 200, trust=True,
        left_out=dict(teacher=124, projector=6, queue=1, other=1),
    ),
    "CMID, backbone only": Case(cmid_backbone, "CMID_ResNet50_bk_200ep", "cmid", "CMID"),
    "RSP": Case(rsp, "ckpt.pth", "rsp", "RSP", 300, left_out=dict(classifier=2)),
}  # fmt: skip
