"""Features of a frozen backbone for labelled images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap


class EvalImages(Dataset):
    """Labelled images, preprocessed the same way every time: resize, centre crop, nothing random.

    An item is (uint8 RGB tensor 3×size×size, label).

    Args:
        source: a folder with one sub-folder per class (labels follow the sorted names), or a text
            file with a line ``path label`` per image, the paths relative to the file's folder;
            or the (path, label) of each image.
        size: side of the square crop in pixels.
        resize: length in pixels that the shorter side is brought to first (bilinear with
            antialiasing); ``size`` by default, so that nothing but the ends of the longer side is
            cut off.
        limit: use only this many images, spread evenly over the list.

    Raises:
        UserError: the source does not exist, holds no image or has a line that cannot be read.
    """

    def __init__(
        self,
        source: str | os.PathLike | Sequence[tuple[str, int]],
        size: int = 224,
        resize: int | None = None,
        limit: int | None = None,
    ) -> None:
        resize = size if resize is None else resize
        if resize < size:
            raise UserError(f"resize must be at least the size {size} of the crop, got {resize}")
        self.samples: list[tuple[str, int]] = (
            read_source(source) if isinstance(source, (str, os.PathLike)) else list(source)
        )
        if limit is not None and limit < len(self.samples):
            chosen = torch.linspace(0, len(self.samples) - 1, limit).round().long().tolist()
            self.samples = [self.samples[i] for i in chosen]
        self.transform = T.Compose(
            [T.Resize(resize, antialias=True), T.CenterCrop(size), T.PILToTensor()]
        )

    @property
    def labels(self) -> torch.Tensor:
        """Labels of all images, int64, N."""
        return torch.tensor([label for _, label in self.samples], dtype=torch.long)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (uint8 RGB tensor 3×size×size, label)."""
        path, label = self.samples[index]
        try:
            return self.transform(load_rgb(path)), label
        except BadImageError as error:
            raise UserError(f"{path} cannot be read ({error}): repair or remove it") from None


def read_source(
    source: str | os.PathLike, root: str | os.PathLike | None = None
) -> list[tuple[str, int]]:
    """Return (path, label) of each image of a folder of classes or of a list.

    Args:
        source: see :class:`EvalImages`.
        root: folder that the paths of a list are relative to; by default that of the list.

    Raises:
        UserError: the source does not exist, holds no image or has a line that cannot be read.
    """
    source = Path(source)
    root = source.parent if root is None else Path(root)
    if source.is_dir():
        try:
            return list(ImageFolder(str(source)).samples)
        except FileNotFoundError as error:
            raise UserError(
                f"{source}: {error}; expected one sub-folder of images a class"
            ) from None
    if not source.is_file():
        raise UserError(f"{source} does not exist: give a folder of classes, or a list of images")
    samples = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal():
            raise UserError(f"{source}, line {number}: expected `path label`, found {line!r}")
        samples.append((str(root / path), int(label)))
    if not samples:
        raise UserError(f"{source} lists no image")
    return samples


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; give every module its own mode back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def extract_features(
    model: nn.Module,
    dataset: Dataset,
    *,
    mean: Sequence[float] = RGB_MEAN,
    std: Sequence[float] = RGB_STD,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: str | None = "features",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a frozen backbone over a dataset.

    The model is in eval mode meanwhile, so BatchNorm statistics stay as they are, and each of its
    modules is given its mode back. Under ``torch.distributed`` every rank runs its share, and all
    ranks return the features of the whole dataset, in its order.

    Args:
        model: a backbone, or a model with a ``backbone``, whose output (the last one of several)
            is N×D, N×D×H×W (averaged over the positions) or N×tokens×D (averaged over the tokens).
        dataset: items are (RGB tensor 3×H×W with values 0 to 255, label): :class:`EvalImages`.
        mean: per-channel mean in RGB order, range 0 to 255, that the backbone was trained with.
        std: per-channel standard deviation, likewise.
        device: where to run; by default where the model is. The model is not moved.
        batch_size: images of one forward pass.
        num_workers: processes that decode images.
        progress: text beside the progress bar of rank 0, None for no bar.

    Returns:
        Features N×D, fp32, and labels N, int64, both on the CPU.

    Raises:
        UserError: the dataset is empty, or the output has another number of dimensions.
    """
    total = len(dataset)  # type: ignore[arg-type]
    if total == 0:
        raise UserError("there are no images to extract features of")
    whole = unwrap(model)
    backbone: Any = getattr(whole, "backbone", whole)
    if device is None:
        device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    rank, world_size = dist.get_dist_info()
    mine = range(rank, total, world_size)
    loader = DataLoader(Subset(dataset, mine), batch_size, num_workers=num_workers)
    shift, scale = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (mean, std))
    bar = tqdm(total=len(mine), desc=progress, unit="img", disable=progress is None or rank > 0)

    features: torch.Tensor | None = None
    labels = torch.zeros(len(mine), dtype=torch.long)
    done = 0
    with evaluating(backbone), bar:
        for images, targets in loader:
            images = images.to(device, torch.float32).sub(shift).div(scale)
            batch = pool(backbone(images)).cpu()
            if features is None:
                features = torch.empty(len(mine), batch.shape[1])
            features[done : done + len(batch)] = batch
            labels[done : done + len(batch)] = targets
            done += len(batch)
            bar.update(len(batch))
    if world_size == 1:
        assert features is not None
        return features, labels
    return _gather(features, labels, total, world_size, torch.device(device))


def pool(output: Any) -> torch.Tensor:
    """Bring a backbone's output to one fp32 vector per image, N×D.

    Args:
        output: a tensor, or several of which the last counts: N×D, N×D×H×W or N×tokens×D.

    Raises:
        UserError: it has another number of dimensions.
    """
    while isinstance(output, (tuple, list)):
        output = output[-1]
    if output.dim() == 4:
        output = output.mean((2, 3))
    elif output.dim() == 3:
        output = output.mean(1)
    elif output.dim() != 2:
        raise UserError(
            f"the backbone gives {tuple(output.shape)}; N×D, N×D×H×W or N×tokens×D is needed"
        )
    return output.float()


def _gather(
    features: torch.Tensor | None,
    labels: torch.Tensor,
    total: int,
    world_size: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the shares of all ranks together: rank r holds items r, r + world size, and so on."""
    dim = torch.tensor(0 if features is None else features.shape[1], device=device)
    width = int(max(dist.all_gather(dim)))  # a rank without images does not know it
    each = -(-total // world_size)
    if features is None:
        features = torch.empty(0, width)

    def merged(share: torch.Tensor) -> torch.Tensor:
        padded = share.new_zeros(each, *share.shape[1:])
        padded[: len(share)] = share
        shares = [part.cpu() for part in dist.all_gather(padded.to(device))]
        return torch.stack(shares, 1).flatten(0, 1)[:total]

    return merged(features), merged(labels)
