"""Ways to normalise keys so that BatchNorm does not reveal which images belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from mmengine.dist import get_world_size
from torch import nn

from gersp_mm.models import key_exchange
from gersp_mm.models.batch_norm import (
    Groups,
    by_group,
    group_batch_norms,
    group_sizes,
)

Encode = Callable[[torch.Tensor], torch.Tensor]
SPLIT_SIZE = 32  # images of each kind on a GPU of the released run
FEWEST_IN_GROUP = 8


class Place(NamedTuple):
    """The processes in which keys are normalised.

    Attributes:
        world_size: Number of processes.
        batch_size: Images per process.
        on_cpu: Whether the model is on the CPU.
        split_size: Images of each kind in a group of ``'split'``.
        other_layers: Names of the classes of BatchNorm that cannot be split.
    """

    world_size: int
    batch_size: int
    on_cpu: bool
    split_size: int = SPLIT_SIZE
    other_layers: tuple[str, ...] = ()


class Problem(NamedTuple):
    """A reason why keys cannot be normalised in a given place.

    Attributes:
        field: Dotted key of the config.
        text: What is wrong, a sentence.
        fix: What to do, a sentence; empty for a warning.
    """

    field: str
    text: str
    fix: str


class OwnBatch:
    """Normalisation of a process's keys by their own batch."""

    def prepare(self, model: nn.Module) -> None:
        """Change the layers of a model before its training."""

    def problems(self, place: Place) -> list[Problem]:
        """Return the reasons why this normalisation does not work in a place."""
        if place.batch_size > 1:
            return []
        text = (
            "train_dataloader.batch_size=1 does not work with BatchNorm, because each key would be "
            "normalised by its own statistics."
        )
        fix = "Use at least 2 images per process."
        return [Problem("train_dataloader.batch_size", text, fix)]

    def group_count(self, images: int, split_size: int) -> int:
        """Return the number of groups in which a process normalises its images of each kind."""
        return 1

    def sent_bytes(self, images: torch.Tensor) -> int:
        """Return the bytes of images that this process sends to others in one step."""
        return 0

    def keys(self, encode: Encode, images: torch.Tensor, groups: Groups) -> torch.Tensor:
        """Return the keys of a batch of images.

        Args:
            encode: The teacher, from N×3×H×W images to N×feat_dim keys.
            images: N×3×H×W.
            groups: The groups of this step.
        """
        return encode(images)


class ShuffledBatch(OwnBatch):
    """Normalisation of keys among images of all processes, which they exchange."""

    def problems(self, place: Place) -> list[Problem]:
        """Return the reasons against shuffling, which a single process cannot do."""
        found = super().problems(place)
        if place.world_size == 1:
            text = (
                "key_bn='shuffle' has no effect with one process: BatchNorm takes the statistics "
                "of keys and queries from the same images, so that a run on one GPU differs from a "
                "run on several. key_bn='split' works with one process"
            )
            found.append(Problem("model.key_bn", text, ""))
        return found

    def sent_bytes(self, images: torch.Tensor) -> int:
        """Return the bytes of images that this process sends to others in one step."""
        return key_exchange.exchanged_bytes(images)

    def keys(self, encode: Encode, images: torch.Tensor, groups: Groups) -> torch.Tensor:
        """Return the keys of a batch of images, each normalised in the process that got it."""
        if get_world_size() == 1:
            return encode(images)
        images, order = key_exchange.send_away(images)
        return key_exchange.bring_back(encode(images), order)


class SplitBatch(OwnBatch):
    """Normalisation within each process in groups, as if each group had a process of its own.

    Query n and natural image n belong to group n mod G. Their keys are dealt to the groups so that
    every group of keys gets an equal, random share of the images of every group of queries. This is
    what :class:`ShuffledBatch` does between G processes, and no other deal of them makes a key and
    its query share fewer images: 1/G of a group.
    """

    def prepare(self, model: nn.Module) -> None:
        """Make every BatchNorm of the model one that can be split."""
        group_batch_norms(model)

    def group_count(self, images: int, split_size: int) -> int:
        """Return the number of groups whose size comes nearest to ``split_size``.

        There are at least two, unless one would have fewer than 8 images (or than ``split_size``).
        """
        fewest = min(FEWEST_IN_GROUP, split_size)
        nearest = (2 * images + split_size) // (2 * split_size)
        return max(1, min(max(2, nearest), images // fewest))

    def problems(self, place: Place) -> list[Problem]:
        """Return the reasons against splitting, which needs two groups of several images."""
        found = super().problems(place)
        fewest = min(FEWEST_IN_GROUP, place.split_size)
        if not found and self.group_count(place.batch_size, place.split_size) == 1:
            text = (
                f"key_bn='split' needs two groups of at least {fewest} images, but "
                f"train_dataloader.batch_size={place.batch_size}. BatchNorm takes the statistics "
                "of keys and queries from the same images, as with key_bn='none'. Use batches of "
                f"{2 * fewest} or more"
            )
            found.append(Problem("model.key_bn", text, ""))
        if place.other_layers:
            text = (
                f"key_bn='split' cannot split {', '.join(place.other_layers)}, which takes the "
                "statistics of keys and queries from the same images. Use nn.BatchNorm2d"
            )
            found.append(Problem("model.key_bn", text, ""))
        return found

    def keys(self, encode: Encode, images: torch.Tensor, groups: Groups) -> torch.Tensor:
        """Return the keys of a batch of images, each normalised in the group that got it."""
        if groups.number == 1:
            return encode(images)
        order = deal(len(images), groups.number, images.device)
        if groups.blocked:
            order = order[by_group(len(images), groups.number, images.device)]
        keys = encode(images[order])
        return torch.empty_like(keys).index_copy_(0, order, keys)


def deal(n: int, groups: int, device: torch.device | None = None) -> torch.Tensor:
    """Return a random order of n images whose place p belongs to group p mod G.

    Every group gets an equal share (of one image more or less) of every group of the old order.
    """
    shuffled = torch.randperm(n, device=device)
    return shuffled[torch.argsort(shuffled % groups, stable=True)]


class SyncedBatch(OwnBatch):
    """Normalisation of keys, queries and natural images by the batches of all processes."""

    def prepare(self, model: nn.Module) -> None:
        """Turn every BatchNorm of the model into SyncBN."""
        for name, child in list(model.named_children()):
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))

    def problems(self, place: Place) -> list[Problem]:
        """Return the reasons against SyncBN, which needs GPUs."""
        if place.world_size == 1:
            return super().problems(place)
        if not place.on_cpu:
            return []
        text = "model.key_bn='sync' needs GPUs, because SyncBN does not run on CPUs."
        return [Problem("model.key_bn", text, "Use 'shuffle'.")]


KEY_NORMS = {
    "shuffle": ShuffledBatch(),
    "split": SplitBatch(),
    "sync": SyncedBatch(),
    "none": OwnBatch(),
}  # by key_bn


def chosen(key_bn: str, world_size: int | None = None) -> str:
    """Return what ``'auto'`` stands for: shuffling between several processes, splitting in one.

    Args:
        key_bn: Any choice; those other than ``'auto'`` are returned.
        world_size: Number of processes; those that run now by default.
    """
    if key_bn != "auto":
        return key_bn
    return "shuffle" if (world_size or get_world_size()) > 1 else "split"


def groups_of(key_bn: str, sizes: Sequence[int], split_size: int, blocked: bool) -> Groups:
    """Return the groups of a step.

    Args:
        key_bn: The choice.
        sizes: Numbers of images of each kind.
        split_size: Images of each kind that a group should have.
        blocked: Whether the memory layout needs batches that are sorted by group.
    """
    count = KEY_NORMS[chosen(key_bn)].group_count(min(sizes), split_size)
    return Groups(count, count > 1 and (blocked or any(size % count for size in sizes)))


def describe(key_bn: str, place: Place) -> str | None:
    """Return one line that says how keys are normalised, or None where the option says it."""
    choice = chosen(key_bn, place.world_size)
    text = f"key_bn='{choice}'"
    if key_bn == "auto":
        processes = "one process" if place.world_size == 1 else f"{place.world_size} processes"
        text += f" (chosen by 'auto' for {processes})"
    elif choice != "split":
        return None
    count = KEY_NORMS[choice].group_count(place.batch_size, place.split_size)
    if count > 1:
        sizes = sorted(set(group_sizes(place.batch_size, count)))
        numbers = " or ".join(map(str, sizes))
        text += f": BatchNorm in {count} groups of {numbers} images of each kind"
    return text
