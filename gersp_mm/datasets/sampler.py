"""The sampler that pairs remote-sensing images with natural images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from gersp_mm.registry import DATA_SAMPLERS
from gersp_mm.utils.errors import UserError, check_flag, check_number

if TYPE_CHECKING:
    from gersp_mm.datasets.paired import PairedDataset


class PairIndex(NamedTuple):
    """The numbers of two images, and the seed of their augmentation."""

    remote_sensing: int
    natural: int
    seed: int


@DATA_SAMPLERS.register_module()
class PairedSampler(Sampler):
    """Sampler of (remote-sensing, natural) pairs that permutes each source in every epoch.

    The pairs of an epoch depend only on (seed, epoch): they are the same for any number of workers
    and after any interruption, and disjoint between ranks. The shorter source starts a new
    permutation whenever all its images have been used.

    Args:
        dataset: A :class:`PairedDataset`.
        seed: Seed of the pairs, at least 0; by default it is drawn and shared by all ranks.
        shuffle: Whether to permute the sources.
        pairing: ``'independent'``, or ``'locked'``: image i of one source always comes with image i
            of the other (modulo its length), as in the released code
            (``mmselfsup/datasets/multi_view_DACP.py``).
        epoch_length: An epoch is one pass over the ``'longer'``, the ``'shorter'``, the
            ``'remote_sensing'`` or the ``'natural'`` source. With locked pairs, an epoch that is
            shorter than the longer source is a random part of a pass over that source.

    Raises:
        UserError: An argument is not one of its choices or is out of its range, or there are fewer
            pairs than ranks.
    """

    def __init__(
        self,
        dataset: PairedDataset,
        seed: int | None = None,
        shuffle: bool = True,
        pairing: str = "independent",
        epoch_length: str = "longer",
    ) -> None:
        sizes = dict(zip(("remote_sensing", "natural"), dataset.sizes))
        used = [size for size in sizes.values() if size]
        lengths = {"longer": max(used), "shorter": min(used), **sizes}
        if pairing not in ("independent", "locked"):
            raise UserError(f"pairing must be 'independent' or 'locked', got {pairing!r}")
        if not lengths.get(epoch_length):
            raise UserError(
                f"epoch_length must be one of {', '.join(map(repr, lengths))} and name a source "
                f"that the dataset has, got {epoch_length!r}"
            )
        if seed is not None:
            check_number("seed", seed, 0, whole=True, such_as=0)
        check_flag("shuffle", shuffle)
        self.sizes = dataset.sizes
        self.total = lengths[epoch_length]
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.pairing = pairing
        self.rank, self.world_size = get_dist_info()
        self.epoch = 0
        if not len(self):
            raise UserError(f"{self.total} pairs cannot be shared by {self.world_size} ranks")

    def __len__(self) -> int:
        """Number of pairs per epoch and rank; a random remainder is dropped."""
        return self.total // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[PairIndex]:
        rs, natural, seeds = self._draw()
        mine = slice(self.rank, len(self) * self.world_size, self.world_size)
        for pair in zip(rs[mine], natural[mine], seeds[mine]):
            yield PairIndex(*map(int, pair))

    def _draw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return this epoch's remote-sensing indices, natural indices and sample seeds."""
        streams = np.random.SeedSequence([self.seed, self.epoch]).spawn(3)
        generators = [np.random.Generator(np.random.PCG64(stream)) for stream in streams]
        if self.pairing == "locked":
            order = self._indices(generators[0], max(self.sizes))
            rs, natural = (order % max(size, 1) for size in self.sizes)
        else:
            rs, natural = (self._indices(g, size) for g, size in zip(generators, self.sizes))
        return rs, natural, generators[2].integers(0, 2**63, self.total)

    def _indices(self, generator: np.random.Generator, size: int) -> np.ndarray:
        size = max(size, 1)  # The indices of a missing source are never used.
        passes = -(-self.total // size)
        if not self.shuffle:
            return np.tile(np.arange(size), passes)[: self.total]
        return np.concatenate([generator.permutation(size) for _ in range(passes)])[: self.total]
