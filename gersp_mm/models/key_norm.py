"""Ways to normalise keys so that BatchNorm does not reveal which images belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.dist import get_world_size
from torch import nn

from gersp_mm.models import key_exchange

Encode = Callable[[torch.Tensor], torch.Tensor]


class Place(NamedTuple):
    """The processes in which keys are normalised.

    Attributes:
        world_size: Number of processes.
        batch_size: Images per process.
        on_cpu: Whether the model is on the CPU.
    """

    world_size: int
    batch_size: int
    on_cpu: bool


class Problem(NamedTuple):
    """A reason why keys cannot be normalised in a given place.

    Attributes:
        field: Dotted key of the config.
        value: Its value.
        text: What is wrong, a sentence.
        fix: What to do, a sentence; empty for a warning.
    """

    field: str
    value: object
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
        return [Problem("train_dataloader.batch_size", 1, text, fix)]

    def sent_bytes(self, images: torch.Tensor) -> int:
        """Return the bytes of images that this process sends to others in one step."""
        return 0

    def keys(self, encode: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return the keys of a batch of images.

        Args:
            encode: The teacher, from N×3×H×W images to N×feat_dim keys.
            images: N×3×H×W.
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
                "run on several"
            )
            found.append(Problem("model.key_bn", "shuffle", text, ""))
        return found

    def sent_bytes(self, images: torch.Tensor) -> int:
        """Return the bytes of images that this process sends to others in one step."""
        return key_exchange.exchanged_bytes(images)

    def keys(self, encode: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return the keys of a batch of images, each normalised in the process that got it."""
        if get_world_size() == 1:
            return encode(images)
        images, order = key_exchange.send_away(images)
        return key_exchange.bring_back(encode(images), order)


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
        return [Problem("model.key_bn", "sync", text, "Use 'shuffle'.")]


KEY_NORMS = {"shuffle": ShuffledBatch(), "sync": SyncedBatch(), "none": OwnBatch()}  # by key_bn
