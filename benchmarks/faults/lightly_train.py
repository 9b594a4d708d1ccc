"""lightly's MoCo on a folder of images, after its own example, as small as tiny.py."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.moco_transform import MoCoV2Transform
from torch import nn
from torchvision.models import resnet18


def main() -> None:
    """Train for two epochs, and save the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    backbone = nn.Sequential(*list(resnet18().children())[:-1])
    head = MoCoProjectionHead(512, 512, 128)
    teacher, teacher_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(teacher)
    deactivate_requires_grad(teacher_head)
    data = LightlyDataset(args.images, transform=MoCoV2Transform(input_size=32))
    loader = torch.utils.data.DataLoader(data, args.batch, shuffle=True, drop_last=True)
    criterion = NTXentLoss(memory_bank_size=(args.queue, 128))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    step = 0
    for _ in range(2):
        for (query, key), _, _ in loader:
            step += 1
            print(f"[faults] step {step} begins", flush=True)
            update_momentum(backbone, teacher, m=0.99)
            update_momentum(head, teacher_head, m=0.99)
            queries = head(backbone(query).flatten(1))
            with torch.no_grad():
                keys = teacher_head(teacher(key).flatten(1))
            loss = criterion(queries, keys)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.save(backbone.state_dict(), args.work_dir / "backbone.pth")


if __name__ == "__main__":
    main()
