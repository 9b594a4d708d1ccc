"""The lines that load a file of ``--to torchvision`` or ``--to timm`` in other libraries.

The tests run them, the converter prints them, and docs/guide/checkpoints.md shows them.
"""

from __future__ import annotations

import os

STATE = "state = torch.load({file}, weights_only=True)"
# By library. Of these, timm's `checkpoint_path` with classes and torchgeo's `weights` ask for a
# classifier, which no file of a backbone holds.
LINES = {
    "torchvision": (
        STATE,
        "model = torchvision.models.{arch}(weights=None)",
        "model.fc = torch.nn.Identity()",
        "model.load_state_dict(state)",
    ),
    "torchvision, FPN": (
        STATE,
        "model = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(",
        '    backbone_name="{arch}", weights=None',
        ")",
        "model.body.load_state_dict(state)",
    ),
    "timm": (
        "model = timm.create_model(",
        '    "{arch}",',
        "    num_classes=10,",
        "    pretrained=True,",
        "    pretrained_cfg_overlay=dict(file={file}, num_classes=0),",
        ")",
    ),
    "segmentation-models-pytorch": (
        STATE,
        'model = segmentation_models_pytorch.Unet("{arch}", encoder_weights=None, classes=6)',
        "model.encoder.load_state_dict(state)",
    ),
    "torchgeo": (
        STATE,
        'task = torchgeo.trainers.ClassificationTask("{arch}", in_channels=3, num_classes=10)',
        "task.model.load_state_dict(state, strict=False)  # all but fc",
    ),
}


def lines_for(library: str, file: str | os.PathLike, arch: str) -> str:
    """Return the lines that load a file in a library.

    Args:
        library: A key of :data:`LINES`.
        file: Path of the file.
        arch: The network, such as ``resnet50``.
    """
    name = f'"{os.fspath(file)}"'
    return "\n".join(LINES[library]).replace("{file}", name).replace("{arch}", arch)
