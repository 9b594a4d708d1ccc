"""Features of a frozen backbone for labelled images."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.logging import print_log
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision import transforms as T

from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.images.duplicates import Entry, check_parts
from gersp_mm.images.listing import ImageList, find_classes
from gersp_mm.images.pixels import PixelScale
from gersp_mm.utils.console import progress_bar
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import escape_name
from gersp_mm.utils.model import unwrap


class UnreadableImage(UserError):
    """An image of an evaluation that cannot be decoded.

    Args:
        path: Path of the image.
        reason: The cause, for the message.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read ({reason}): repair or remove it")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class EvalImages(Dataset):
    """Labelled images, preprocessed the same way every time: resize, centre crop, nothing random.

    An item is (uint8 RGB tensor 3×size×size, label).

    Args:
        source: A folder with one sub-folder per class (labels follow the sorted names), or a text
            file with a line ``path label`` per image, the paths relative to the file's folder;
            or the (path, label) of each image.
        size: Side of the square crop in pixels.
        resize: Length in pixels to which the shorter side is resized first (bilinear with
            antialiasing); ``size`` by default, so that only the ends of the longer side are cut
            off.
        limit: Greatest number of images, which are spread evenly over the list.
        pixel_scale: Scale of rasters; None stretches each raster by its own values.

    Attributes:
        samples: Path and label of each image.
        left_out: Index among all images, path and reason of each image that :meth:`leave_out`
            removed.

    Raises:
        UserError: The source does not exist, holds no image or has a line that cannot be read.
    """

    def __init__(
        self,
        source: str | os.PathLike | Sequence[tuple[str, int]],
        size: int = 224,
        resize: int | None = None,
        limit: int | None = None,
        pixel_scale: PixelScale | None = None,
    ) -> None:
        self.pixel_scale = pixel_scale
        resize = size if resize is None else resize
        if resize < size:
            raise UserError(f"resize must be at least the size {size} of the crop, got {resize}")
        self.samples: list[tuple[str, int]] = (
            read_source(source) if isinstance(source, (str, os.PathLike)) else list(source)
        )
        self.left_out: list[tuple[int, str, str]] = []
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
        """Return (uint8 RGB tensor 3×size×size, label).

        Raises:
            UnreadableImage: The file cannot be decoded.
        """
        path, label = self.samples[index]
        try:
            return self.transform(load_rgb(path, scale=self.pixel_scale)), label
        except BadImageError as error:
            raise UnreadableImage(path, str(error)) from None

    def leave_out(self, unreadable: Mapping[int, str]) -> None:
        """Remove images, and warn of their number and paths.

        Args:
            unreadable: The reason for each index.

        Raises:
            UserError: No image of a class would be left.
        """
        if not unreadable:
            return
        bad = {index: self.samples[index] for index in sorted(unreadable)}
        left = [sample for index, sample in enumerate(self.samples) if index not in bad]
        named = [f"{escape_name(path)} ({unreadable[i]})" for i, (path, _) in bad.items()]
        said = f"{len(bad)} of {len(self.samples)} images cannot be read"
        gone = {label for _, label in bad.values()} - {label for _, label in left}
        if gone:
            count = Counter(label for _, label in bad.values())
            classes = listed([f"{count[label]} of label {label}" for label in sorted(gone)])
            raise UserError(
                f"{said}, among them all of a class ({classes}): {listed(named, 3)}. Repair or "
                "remove them."
            )
        print_log(
            f"{said} and are left out of the evaluation: {listed(named, 3)}",
            logger="current",
            level=logging.WARNING,
        )
        self.left_out += [(index, path, unreadable[index]) for index, (path, _) in bad.items()]
        self.samples = left


def read_source(source: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Entry]:
    """Return (path, label) of each image of a folder of classes or of a list.

    Args:
        source: See :class:`EvalImages`.
        root: Folder that the paths of a list are relative to; by default that of the list.

    Raises:
        UserError: The source does not exist, holds no image or has a line that cannot be read.
    """
    return _read(Path(source), root)[0]


def read_parts(
    sources: Mapping[str, str | os.PathLike],
    size: int = 224,
    limit: int | None = None,
    refuse_shared: bool = True,
) -> dict[str, EvalImages]:
    """Read the parts of an evaluation, and number the classes of all as in the first part.

    Args:
        sources: Folder or list of each part, see :class:`EvalImages`; the training part first. In
            lists, the folders of the images are the names of the classes if each label has its
            own folder.
        size: Side of the square crop in pixels.
        limit: Greatest number of images of each part.
        refuse_shared: Whether many pictures that two parts share are an error, see
            :func:`gersp_mm.images.duplicates.check_parts`; otherwise they are a warning.

    Raises:
        UserError: A part cannot be read, or has a class or label that the training part lacks; or
            too many pictures are in two parts.
    """
    read = {}
    for part, source in sources.items():
        try:
            read[part] = _read(Path(source))
        except UserError as error:
            raise UserError(f"{part}: {error}") from None
    training, *others = read
    entries, numbers = read[training]
    for part in others:
        read[part] = _follow(read[part], (sources[part], part), numbers, entries, training)
    images = {part: EvalImages(found, size, limit=limit) for part, (found, _) in read.items()}
    where = " and ".join(str(source) for source in sources.values())
    check_parts({part: found.samples for part, found in images.items()}, where, refuse_shared)
    return images


_Read = tuple[list[Entry], dict[str, int]]  # images, and the labels of classes that have names


def _read(source: Path, root: str | os.PathLike | None = None) -> _Read:
    root = source.parent if root is None else Path(root)
    if source.is_dir():
        classes = find_classes(source)
        entries = [
            (str(source / path), label)
            for label, paths in enumerate(classes.values())
            for path in paths
        ]
        if not entries:
            raise UserError(
                f"{source} holds no class with images; expected one sub-folder of images per class"
            )
        return entries, {
            name: label for label, (name, paths) in enumerate(classes.items()) if paths
        }
    if not source.is_file():
        raise UserError(f"{source} does not exist: give a folder of classes, or a list of images")
    images = ImageList.read(source, root)
    if not images.paths:
        raise UserError(f"{source} lists no image")
    assert images.labels is not None
    entries = [(str(root / path), label) for path, label in zip(images.paths, images.labels)]
    return entries, _named_by_folders(entries)


def _named_by_folders(entries: Sequence[Entry]) -> dict[str, int]:
    """Return the label of each folder of images; empty if labels and folders do not agree."""
    labels: dict[str, set[int]] = defaultdict(set)
    for path, label in entries:
        labels[os.path.basename(os.path.dirname(path))].add(label)
    numbers = {name: next(iter(own)) for name, own in labels.items()}
    one_to_one = all(len(own) == 1 for own in labels.values())
    return numbers if one_to_one and len(set(numbers.values())) == len(numbers) else {}


def _follow(
    read: _Read,
    named: tuple[str | os.PathLike, str],
    numbers: Mapping[str, int],
    training: Sequence[Entry],
    training_part: str,
) -> _Read:
    """Number the classes of a part as the training part does.

    Args:
        read: Images of the part, and the labels of its classes before they are renumbered.
        named: Source and name of the part, for messages.
        numbers: Labels of the training part's classes.
        training: Images of the training part.
        training_part: Name of the training part, for messages.
    """
    source, part = named
    entries, own = read
    known = {label for _, label in training}
    if os.path.isdir(source):
        unknown = sorted(set(own) - set(numbers))
        if numbers and unknown:
            raise UserError(
                f"The {part} images ({source}) have classes that the {training_part} images "
                f"lack: {listed(unknown)}. Remove them, or add training images of them."
            )
        if numbers:
            labels = {label: numbers[name] for name, label in own.items()}
            return [(path, labels[label]) for path, label in entries], dict(numbers)
        if set(own.values()) != known:
            raise UserError(
                f"The {part} images ({source}) have {len(own)} class folders, but the "
                f"{training_part} images have {len(known)} labels without class names, so the "
                f"folders cannot be numbered. Give the {part} images as a list as well."
            )
    for name in own.keys() & numbers.keys():
        if own[name] != numbers[name]:
            raise UserError(
                f"The {part} images ({source}) give the class {name} the label {own[name]}, the "
                f"{training_part} images {numbers[name]}. Write both with one list of classes."
            )
    for path, label in entries:
        if label not in known:
            raise UserError(
                f"The {part} images ({source}) have the label {label}, which no {training_part} "
                f"image has: {escape_name(path)}. Remove them, or add training images of the class."
            )
    return read


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and restore the mode of every module on leaving."""
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
    """Return the features of a frozen backbone for all images of a dataset.

    The model runs in eval mode, so BatchNorm statistics do not change, and the mode of each module
    is restored. Images that cannot be read are left out, with a warning, and are
    removed from ``dataset``, so that its items and the features agree. Under ``torch.distributed``
    every rank runs its share, and all ranks return the features of the whole dataset, in its order.

    Args:
        model: A backbone, or a model with a ``backbone``, whose output (the last one of several)
            is N×D, N×D×H×W (averaged over the positions) or N×tokens×D (averaged over the tokens).
        dataset: Items are (RGB tensor 3×H×W with values 0 to 255, label): :class:`EvalImages`.
        mean: Per-channel mean in RGB order, range 0 to 255, that the backbone was trained with.
        std: Per-channel standard deviation in RGB order, range 0 to 255.
        device: Device of the images; by default the model's. The model is not moved.
        batch_size: Number of images in one forward pass.
        num_workers: Number of processes that decode images.
        progress: Text next to the progress bar of rank 0, None for no bar.

    Returns:
        Features N×D, fp32, and labels N, int64, both on the CPU.

    Raises:
        UserError: The dataset is empty, or the output has another number of dimensions.
        RuntimeError: The extraction failed on another rank. In that case all ranks raise.
    """
    total = len(dataset)  # type: ignore[arg-type]
    if total == 0:
        raise UserError("There are no images to extract features from.")
    whole = unwrap(model)
    backbone: Any = getattr(whole, "backbone", whole)
    if device is None:
        device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    rank, world_size = dist.get_dist_info()
    mine = range(rank, total, world_size)
    guarded = Subset(_Guarded(dataset), mine)
    loader = DataLoader(guarded, batch_size, num_workers=num_workers, collate_fn=_collate)
    shown = progress is not None and rank == 0

    features: torch.Tensor | None = None
    labels = torch.zeros(len(mine), dtype=torch.long)
    unreadable: dict[int, str] = {}

    def run() -> None:
        nonlocal features
        done = 0
        for batch, bad in loader:
            unreadable.update((mine[done + place], reason) for place, reason in bad.items())
            if batch is not None:
                images, targets = batch
                output = pool(backbone(prepare(images, mean, std, device))).cpu()
                if features is None:
                    features = torch.zeros(len(mine), output.shape[1])
                size = len(output) + len(bad)
                places = [done + place for place in range(size) if place not in bad]
                features[places] = output
                labels[places] = targets
            else:
                size = len(bad)
            done += size
            bar.advance(size)

    with evaluating(backbone), progress_bar(progress or "", "img", len(mine), shown=shown) as bar:
        _fail_together(run)
    if world_size > 1:
        for found in dist.all_gather_object(unreadable):
            unreadable.update(found)
    if len(unreadable) == total:
        reason = next(iter(unreadable.values()))
        raise UserError(f"None of the {total} images can be read, the first one for: {reason}")
    if world_size == 1:
        assert features is not None
    else:
        features, labels = _gather(features, labels, total, world_size, torch.device(device))
    if unreadable:
        dataset.leave_out(unreadable)  # type: ignore[attr-defined]  # only such raise the error
        kept = [index for index in range(total) if index not in unreadable]
        features, labels = features[kept], labels[kept]
    return features, labels


def _fail_together(run: Callable[[], None]) -> None:
    """Run a function on every rank; if it fails on one, all raise, so that none waits for it."""
    failure: Exception | None = None
    try:
        run()
    except Exception as error:
        failure = error
    if dist.get_world_size() > 1:
        told = dist.all_gather_object(failure and f"{type(failure).__name__}: {failure}")
        failed = [f"rank {rank} failed: {text}" for rank, text in enumerate(told) if text]
        if failed and failure is None:
            raise RuntimeError("; ".join(failed))
    if failure is not None:
        raise failure


class _Guarded(Dataset):
    """A dataset that gives the reason in place of an image that cannot be read."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UnreadableImage as error:
            return error.reason


def _collate(items: Sequence[Any]) -> tuple[Any, dict[int, str]]:
    """Return a batch of the readable images or None, and reasons by place in the batch."""
    bad = {place: item for place, item in enumerate(items) if isinstance(item, str)}
    good = [item for item in items if not isinstance(item, str)]
    return (default_collate(good) if good else None), bad


def prepare(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """Return normalised fp32 images, the input of a network.

    Args:
        images: N×3×H×W with values 0 to 255, in the channel order of ``mean``.
        mean: Mean per channel, range 0 to 255.
        std: Standard deviation per channel, range 0 to 255.
        device: Device of the network; by default that of the images.
    """
    images = images.to(device, torch.float32)
    shift, scale = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return images.sub(shift).div(scale)


def pool(output: Any) -> torch.Tensor:
    """Return one fp32 vector per image, N×D, for a backbone's output.

    Args:
        output: A tensor N×D, N×D×H×W or N×tokens×D, or several, of which the last one is used.

    Raises:
        UserError: The tensor has another number of dimensions.
    """
    output = last_output(output)
    if output.dim() == 4:
        output = output.mean((2, 3))
    elif output.dim() == 3:
        output = output.mean(1)
    elif output.dim() != 2:
        raise UserError(
            f"the backbone gives {tuple(output.shape)}; N×D, N×D×H×W or N×tokens×D is needed"
        )
    return output.float()


def last_output(output: Any) -> torch.Tensor:
    """Return a backbone's output, or the last one of several outputs."""
    while isinstance(output, (tuple, list)):
        output = output[-1]
    return output


def _gather(
    features: torch.Tensor | None,
    labels: torch.Tensor,
    total: int,
    world_size: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the shares of all ranks: rank r holds items r, r + world size, and so on."""
    dim = torch.tensor(0 if features is None else features.shape[1], device=device)
    width = int(max(dist.all_gather(dim)))  # A rank without images does not know the dimension.
    each = -(-total // world_size)
    if features is None:
        features = torch.empty(0, width)

    def merged(share: torch.Tensor) -> torch.Tensor:
        padded = share.new_zeros(each, *share.shape[1:])
        padded[: len(share)] = share
        shares = [part.cpu() for part in dist.all_gather(padded.to(device))]
        return torch.stack(shares, 1).flatten(0, 1)[:total]

    return merged(features), merged(labels)
