"""The peers of ``gersp_mm`` in timings, each in plain code.

* the released GeRSP code (floatingstarZ/GeRSP at 4ea0bd3): one training step and one data sample,
  rewritten after reading ``mmselfsup/models/algorithms/moco_gersp.py``,
  ``mmselfsup/models/algorithms/base.py``, ``mmselfsup/datasets/multi_view_DACP.py``,
  ``mmselfsup/datasets/data_sources/base.py`` and ``configs/selfsup/GeRSP/GeRSP.py``. The code
  itself does not run on our versions of PyTorch;
* mmpretrain's MoCo and its data pipeline;
* lightly's MoCo modules.

All of them get the same backbone class, the same shapes of weights and the same images, so that
they differ only in the work around the network.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mmcv
import torch
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import transforms as T

from gersp_mm.augmentation.view import PRESETS
from gersp_mm.constants import RGB_MEAN, RGB_STD

Source = Sequence[tuple[str, int]]  # paths and labels
Batch = Mapping[str, Any]  # rs_query, rs_key, natural: N×3×H×W, normalised; label; data_samples


# -------------------------------------------------------------------------------- the released code
class ReleasedStep:
    """One training step of the released code.

    The order is that of the code: student over query views and natural images in one forward,
    teacher updated by a loop over parameters that makes new tensors, teacher over the key views,
    similarities to a copy of the queue (feat_dim × queue_len), concatenated with the positive's and
    divided by T, cross entropy; cross entropy of the natural images and two accuracies; keys
    written into columns of the queue; every logged number fetched with ``.item()``; SGD with a
    separate group for every parameter, including frozen ones.

    Two details are faster than in the original: gradients are set to None instead of zero, which is
    today's default, and images are not shuffled, which has no effect in one process.

    Args:
        model: The model part of a config for :class:`gersp_mm.GeRSP`.
        optimizer: Config of the SGD.
        amp: Whether the network runs under bfloat16 autocast; the released config does not use it.
    """

    def __init__(
        self, model: Mapping[str, Any], optimizer: Mapping[str, Any], amp: bool = False
    ) -> None:
        neck = model["neck"]
        self.encoder_q: nn.Module = MODELS.build(dict(model["backbone"]))
        self.proj_q = nn.Sequential(
            nn.Linear(neck["in_channels"], neck["hid_channels"]),
            nn.ReLU(),
            nn.Linear(neck["hid_channels"], neck["out_channels"]),
        )
        head = model["natural_head"]
        self.pred_q = nn.Linear(head["in_channels"], head["num_classes"])
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.proj_k = copy.deepcopy(self.proj_q).requires_grad_(False)
        self.queue = F.normalize(torch.randn(neck["out_channels"], model["queue_len"]), dim=0)
        self.queue_ptr = torch.zeros(1, dtype=torch.long)
        self.temperature = model["head"]["temperature"]
        self.momentum = model["teacher_momentum"]
        self.alpha = model["alpha"]
        self.amp = amp
        self.modules = nn.ModuleList(
            [self.encoder_q, self.proj_q, self.pred_q, self.encoder_k, self.proj_k]
        ).train()
        arguments = {key: value for key, value in optimizer.items() if key != "type"}
        arguments.pop("fused", None)
        self.optimizer = torch.optim.SGD(
            [dict(params=[p]) for p in self.modules.parameters()], **arguments
        )

    def to(self, target: Any) -> ReleasedStep:
        """Move everything to a device or floating-point type."""
        self.modules.to(target)
        self.queue = self.queue.to(target)
        if not isinstance(target, torch.dtype):
            self.queue_ptr = self.queue_ptr.to(target)
        return self

    @torch.no_grad()
    def load(self, model: Any) -> ReleasedStep:
        """Copy the state of a :class:`gersp_mm.GeRSP`."""
        self.encoder_q.load_state_dict(model.backbone.state_dict())
        self.proj_q.load_state_dict(model.neck.mlp.state_dict())
        self.pred_q.load_state_dict(model.natural_head.fc.state_dict())
        self.encoder_k.load_state_dict(model.teacher.backbone.state_dict())
        self.proj_k.load_state_dict(model.teacher.neck.mlp.state_dict())
        self.queue.copy_(model.queue.t())
        self.queue_ptr.copy_(model.queue_ptr)
        return self

    def step(self, batch: Batch) -> dict[str, float]:
        """Train on one batch of normalised images, and return the values for the log."""
        device = batch["rs_query"].device.type
        with torch.autocast(device, torch.bfloat16) if self.amp else contextlib.nullcontext():
            losses = self._losses(batch)
        total = sum(value.mean() for name, value in losses.items() if "loss" in name)
        logged = {name: value.mean().item() for name, value in losses.items()}
        logged["total"] = total.item()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return logged

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        n = len(batch["rs_query"])
        maps = self.encoder_q(torch.cat([batch["rs_query"], batch["natural"]]))[0]
        features = F.adaptive_avg_pool2d(maps, (1, 1)).flatten(1)
        query = F.normalize(self.proj_q(features[:n]), dim=1)
        with torch.no_grad():
            released_teacher_update(self.encoder_q, self.encoder_k, self.momentum)
            maps = self.encoder_k(batch["rs_key"])[0]
            key = self.proj_k(F.adaptive_avg_pool2d(maps, (1, 1)).flatten(1))
            key = F.normalize(key, dim=1)
        loss = released_info_nce(query, key, self.queue, self.temperature)
        scores = self.pred_q(features[n:])
        accuracies = _accuracies(scores, batch["label"])
        losses = {
            "loss": loss,
            "sup_loss": self.alpha * F.cross_entropy(scores, batch["label"]),
            **{f"sup_acc{k}": value for k, value in accuracies.items()},
            "sup_alpha": scores.new_tensor(self.alpha),
        }
        released_enqueue(self.queue, self.queue_ptr, key)
        return losses


@torch.no_grad()
def released_teacher_update(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Give every teacher parameter a new tensor, one after the other."""
    for theta_s, theta_t in zip(student.parameters(), teacher.parameters()):
        theta_t.data = theta_t.data * momentum + theta_s.data * (1.0 - momentum)


def released_info_nce(
    query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return InfoNCE through all logits at once; ``queue`` is feat_dim × queue_len."""
    positive = torch.einsum("nc,nc->n", query, key)[:, None]
    negatives = torch.einsum("nc,ck->nk", query, queue.clone().detach())
    logits = torch.cat([positive, negatives], dim=1)
    logits /= temperature
    target = torch.zeros(len(logits), dtype=torch.long).to(logits.device)
    return F.cross_entropy(logits, target)


@torch.no_grad()
def released_enqueue(queue: torch.Tensor, queue_ptr: torch.Tensor, keys: torch.Tensor) -> None:
    """Write keys into the next columns, and wait for the device to know the columns."""
    count, length = len(keys), queue.shape[1]
    if length % count:
        raise ValueError(f"the released code needs a queue ({length}) of whole batches ({count})")
    start = int(queue_ptr)
    queue[:, start : start + count] = keys.t()
    queue_ptr[0] = (start + count) % length


@torch.no_grad()
def _accuracies(scores: torch.Tensor, label: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return top-1 and top-5 accuracy in per cent."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices.t()
    right = best == label[None]
    return {
        k: right[:k].reshape(-1).float().sum(0, keepdim=True) * (100 / len(label)) for k in (1, 5)
    }


class ReleasedPairs(Dataset):
    """The released data set: pair i is natural image i and remote-sensing image i.

    Each file is read and decoded **twice** and both views come from the second image: ``get_img``
    in ``data_sources/base.py`` (lines 88 to 115) does so in one of its branches and once more below
    them. OpenCV decodes, through mmcv; torchvision then transforms PIL images, with ToTensor and
    Normalize on the CPU.

    Args:
        remote_sensing: Paths and labels, which are ignored.
        natural: Paths and labels.
        size: Side of the views in pixels.
        decodes: Number of times that a file is read and decoded; 1 fixes the mistake.
        rs_parts: Changes of the released augmentation of the remote-sensing views, by the names
            of ``gersp_mm.ViewAugmentation``.
    """

    def __init__(
        self,
        remote_sensing: Source,
        natural: Source,
        size: int = 224,
        decodes: int = 2,
        rs_parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.remote_sensing, self.natural, self.decodes = remote_sensing, natural, decodes
        self.natural_transform = released_transform(size)
        self.rs_transform = released_transform(size, **(rs_parts or {}))

    def __len__(self) -> int:
        return max(len(self.remote_sensing), len(self.natural))

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.natural[index % len(self.natural)]
        natural = [self.natural_transform(self._read(path))]
        image = self._read(self.remote_sensing[index % len(self.remote_sensing)][0])
        views = [self.rs_transform(image) for _ in range(2)]
        return dict(img=natural, gt_label=[label], ex_img=views)

    def _read(self, path: str) -> Image.Image:
        for _ in range(self.decodes):
            with open(path, "rb") as file:
                content = file.read()
            pixels = mmcv.imfrombytes(content, flag="color", channel_order="rgb", backend="cv2")
        return Image.fromarray(pixels)


def released_transform(size: int, **changes: Any) -> T.Compose:
    """Return the released transforms of one view, PIL image to normalised tensor."""
    parts = {**PRESETS["released"], **changes}
    if parts["blur_prob"]:
        raise ValueError("the released code has no blur")
    jitter: Any = T.ColorJitter(*parts["jitter"])
    if parts["jitter_prob"] < 1:
        jitter = T.RandomApply([jitter], parts["jitter_prob"])
    colour = [T.RandomGrayscale(parts["grayscale_prob"]), jitter]
    steps = [
        T.RandomResizedCrop(size, scale=tuple(parts["scale"])),
        *(colour if parts["grayscale_first"] else colour[::-1]),
        T.RandomHorizontalFlip(parts["horizontal_flip_prob"]),
        T.ToTensor(),
        T.Normalize([m / 255 for m in RGB_MEAN], [s / 255 for s in RGB_STD]),
    ]
    if parts["vertical_flip_prob"]:
        steps.insert(-2, T.RandomVerticalFlip(parts["vertical_flip_prob"]))
    return T.Compose(steps)


def released_batch(collated: Mapping[str, Any], device: Any = "cpu") -> dict[str, torch.Tensor]:
    """Convert a collated batch of :class:`ReleasedPairs` for :class:`ReleasedStep`."""
    query, key = collated["ex_img"]
    batch = dict(
        rs_query=query, rs_key=key, natural=collated["img"][0], label=collated["gt_label"][0]
    )
    return {name: value.to(device) for name, value in batch.items()}


# --------------------------------------------------------------------------------------- mmpretrain
class MMPretrainPairs(Dataset):
    """Pairs through mmpretrain's transforms with OpenCV behind them.

    As in its ``imagenet_mocov2`` configs each file is decoded once and ``MultiView`` makes the
    views; strengths and order are those of the released GeRSP, so the work is the same. Every
    transform with a choice of backends uses ``cv2``, the fastest. The images stay uint8: mmpretrain
    swaps channels and normalises on the device, in its data preprocessor.
    """

    def __init__(self, remote_sensing: Source, natural: Source, size: int = 224) -> None:
        self.remote_sensing, self.natural = remote_sensing, natural
        parts = PRESETS["released"]
        names = ("brightness", "contrast", "saturation", "hue")
        view = [
            dict(
                type="RandomResizedCrop",
                scale=size,
                crop_ratio_range=parts["scale"],
                backend="cv2",
            ),
            dict(
                type="RandomGrayscale",
                prob=parts["grayscale_prob"],
                keep_channels=True,
                channel_weights=(0.114, 0.587, 0.2989),
            ),
            dict(type="ColorJitter", **dict(zip(names, parts["jitter"])), backend="cv2"),
            dict(type="RandomFlip", prob=parts["horizontal_flip_prob"]),
        ]
        load, pack = dict(type="LoadImageFromFile", imdecode_backend="cv2"), dict(type="PackInputs")
        views = dict(type="MultiView", num_views=2, transforms=[view])
        self.rs_pipeline = _pipeline([load, views, pack])
        self.natural_pipeline = _pipeline([load, *view, pack])

    def __len__(self) -> int:
        return max(len(self.remote_sensing), len(self.natural))

    def __getitem__(self, index: int) -> dict[str, Any]:
        rs_path, _ = self.remote_sensing[index % len(self.remote_sensing)]
        path, label = self.natural[index % len(self.natural)]
        return dict(
            remote_sensing=self.rs_pipeline(dict(img_path=rs_path)),
            natural=self.natural_pipeline(dict(img_path=path, gt_label=label)),
        )


def _pipeline(transforms: Sequence[dict]) -> Compose:
    init_default_scope("mmpretrain")
    return Compose([TRANSFORMS.build(transform) for transform in transforms])


def mmpretrain_step(
    model: Mapping[str, Any], optimizer: Mapping[str, Any], amp: bool = False, device: Any = "cpu"
) -> Callable[[Batch], Any]:
    """Return one step of mmpretrain's own ``MoCo``, with the natural images' loss added.

    Included: its whole ``loss`` (student over the query views, teacher's update over parameters and
    buffers, teacher over the key views, ``ContrastiveHead`` against a copy of the queue, enqueue),
    MMEngine's optimizer wrapper and default constructor, and, since MoCo has no such branch, the
    student over the natural images in a separate forward and ``LinearClsHead`` with its
    accuracies. Not included: the data preprocessor, which no contender runs here.
    """
    init_default_scope("mmpretrain")
    head, neck = model["natural_head"], model["neck"]
    moco: Any = MODELS.build(
        dict(
            type="MoCo",
            backbone=dict(model["backbone"]),
            neck=dict(neck),
            head=dict(
                type="ContrastiveHead",
                loss=dict(type="CrossEntropyLoss"),
                temperature=model["head"]["temperature"],
            ),
            queue_len=model["queue_len"],
            feat_dim=neck["out_channels"],
            momentum=1 - model["teacher_momentum"],
        )
    )
    moco.natural_head = MODELS.build(dict(head))
    moco.to(device).train()
    plain = {key: value for key, value in optimizer.items() if key != "fused"}
    wrapper = dict(type="gersp_mm.BFloat16OptimWrapper" if amp else "OptimWrapper", optimizer=plain)
    optim_wrapper: Any = build_optim_wrapper(moco, wrapper)

    def step(batch: Batch) -> None:
        with optim_wrapper.optim_context(moco):
            losses = moco.loss([batch["rs_query"], batch["rs_key"]], [])
            features = moco.backbone(batch["natural"])[0]
            vector = F.adaptive_avg_pool2d(features, 1).flatten(1)
            natural = moco.natural_head.loss((vector,), batch["data_samples"])
            losses["loss_ce"] = model["alpha"] * natural["loss"]
        optim_wrapper.update_params(moco.parse_losses(losses)[0])

    return step


# ------------------------------------------------------------------------------------------ lightly
def has_lightly() -> bool:
    """Return whether lightly is installed, and print how to install it if not."""
    if importlib.util.find_spec("lightly") is not None:
        return True
    print("lightly is not installed: pip install lightly")
    return False


def lightly_step(
    model: Mapping[str, Any], optimizer: Mapping[str, Any], amp: bool = False, device: Any = "cpu"
) -> Callable[[Batch], Any]:
    """Return one step of a plain loop with lightly's MoCo parts, after its MoCo example.

    Parts of lightly: ``MoCoProjectionHead``, ``NTXentLoss`` with a memory bank, ``update_momentum``
    for backbone and head. Plain PyTorch: the joint forward of query views and natural images, a
    linear classifier with cross entropy, SGD. No accuracies are computed and nothing is logged.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    neck, head = model["neck"], model["natural_head"]
    backbone: Any = MODELS.build(dict(model["backbone"]))
    projector = MoCoProjectionHead(
        neck["in_channels"], neck["hid_channels"], neck["out_channels"], num_layers=2
    )
    classifier = nn.Linear(head["in_channels"], head["num_classes"])
    student = nn.ModuleList([backbone, projector, classifier]).to(device).train()
    teacher = copy.deepcopy(nn.ModuleList([backbone, projector]))
    deactivate_requires_grad(teacher)
    bank = (model["queue_len"], neck["out_channels"])
    criterion = NTXentLoss(model["head"]["temperature"], memory_bank_size=bank).to(device)
    arguments = {key: value for key, value in optimizer.items() if key not in ("type", "fused")}
    sgd = torch.optim.SGD(student.parameters(), **arguments)

    def forward(network: Any, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(network(images)[0], 1).flatten(1)

    def step(batch: Batch) -> None:
        n = len(batch["rs_query"])
        update_momentum(backbone, teacher[0], m=model["teacher_momentum"])
        update_momentum(projector, teacher[1], m=model["teacher_momentum"])
        kind = batch["rs_query"].device.type
        with torch.autocast(kind, torch.bfloat16) if amp else contextlib.nullcontext():
            features = forward(backbone, torch.cat([batch["rs_query"], batch["natural"]]))
            query = projector(features[:n])
            with torch.no_grad():
                key = teacher[1](forward(teacher[0], batch["rs_key"]))
            loss = criterion(query, key)
            loss_ce = F.cross_entropy(classifier(features[n:]), batch["label"])
        sgd.zero_grad()
        (loss + model["alpha"] * loss_ce).backward()
        sgd.step()

    return step
