"""The comparison of a converted network with the network of its source."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gersp_mm.backbones.convert import Conversion
from gersp_mm.checkpoints.compare import compare
from gersp_mm.constants import PREFIX
from gersp_mm.utils.errors import UserError

TOLERANCE = 1e-6


def feature_difference(conversion: Conversion, size: int = 224) -> float:
    """Return the largest difference of features, relative to the largest feature.

    The source's network is torchvision's ResNet, or the ``nn.Sequential`` of its parts if the file
    numbers them, with the tensors by the file's names. The other is mmpretrain's ResNet with the
    converted tensors. Both get the same fixed image of ``size`` × ``size`` pixels.

    Raises:
        UserError: The backbone is not one of torchvision's ResNets.
    """
    import torchvision
    from mmpretrain.models import ResNet

    if conversion.depth is None:
        raise UserError(f"--verify is for standard ResNets, this is {conversion.meta['arch']}")
    with torch.device("meta"):  # All weights come from the file.
        network = getattr(torchvision.models, f"resnet{conversion.depth}")()
    if conversion.by_position:
        network = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    else:
        network.fc = nn.Identity()
    state = {name: tensor.float() for name, tensor in conversion.raw.items()}
    if found := compare(state, network.state_dict()):
        raise UserError(f"--verify: the file does not fit the source's network: {found}")
    network.load_state_dict(state, strict=False, assign=True)
    converted = ResNet(conversion.depth)
    converted.load_state_dict({n[len(PREFIX) :]: t for n, t in conversion.backbone.items()})

    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    network.eval()
    converted.eval()  # returns None in mmpretrain
    with torch.no_grad():
        expected = network(image)
        features = F.adaptive_avg_pool2d(converted(image)[-1], 1).flatten(1)
    return float((features - expected).abs().max() / expected.abs().max())


def require_same_features(conversion: Conversion) -> float:
    """Raise a :class:`UserError` if features differ by more than 1e-6; return the difference."""
    difference = feature_difference(conversion)
    if not difference <= TOLERANCE:
        raise UserError(
            f"--verify: the features of the converted network differ by {difference:.1e} from "
            f"those of the source's, more than {TOLERANCE:.0e}: nothing is written"
        )
    return difference
