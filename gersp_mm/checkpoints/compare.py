"""The comparison of two sets of tensors, and a text on the differences."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from gersp_mm.utils.errors import listed

# BatchNorm's counter of batches. Old files lack it, and no result depends on it.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class StateDifference:
    """The differences between given and expected tensors.

    Attributes:
        missing: Names that are expected and not given.
        unexpected: Names that are given and not expected.
        reshaped: Given and expected shape, by name.
        retyped: Given and expected type, by name.
        changed: Names of the same shape and type, but of other values.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    retyped: Mapping[str, tuple[torch.dtype, torch.dtype]] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether there is a difference."""
        return bool(
            self.missing or self.unexpected or self.reshaped or self.retyped or self.changed
        )

    def sentences(self, most: int = 5) -> list[str]:
        """Return a phrase for each kind of difference, each with at most ``most`` names."""
        shapes = [f"{n} is {_text(a)} instead of {_text(b)}" for n, (a, b) in self.reshaped.items()]
        types = [f"{n} is {a} instead of {b}" for n, (a, b) in self.retyped.items()]
        kinds = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", shapes),
            ("of another type", types),
            ("of other values", self.changed),
        ]
        return [f"{len(names)} {kind}: {listed(names, most)}" for kind, names in kinds if names]

    def __str__(self) -> str:
        return "; ".join(self.sentences())


def compare(
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    *,
    values: bool = False,
    types: bool = False,
    optional: Collection[str] = (),
) -> StateDifference:
    """Compare two state dicts by name and shape, and on request by type or values.

    Args:
        given: Tensors of a file.
        expected: Tensors of a module, an optimizer or another file.
        values: Whether values are compared exactly, after conversion to one type.
        types: Whether types are compared.
        optional: Names that may be missing, such as BatchNorm's counters of batches.
    """
    shared = [name for name in expected if name in given]
    reshaped = {
        name: (tuple(given[name].shape), tuple(expected[name].shape))
        for name in shared
        if given[name].shape != expected[name].shape
    }
    retyped = {
        name: (given[name].dtype, expected[name].dtype)
        for name in shared
        if types and given[name].dtype != expected[name].dtype
    }
    changed = [
        name
        for name in shared
        if values and name not in reshaped and not _same(given[name], expected[name])
    ]
    missing = [
        name
        for name in expected
        if name not in given and name not in optional and not name.endswith(COUNTER)
    ]
    unexpected = [name for name in given if name not in expected and not name.endswith(COUNTER)]
    return StateDifference(tuple(missing), tuple(unexpected), reshaped, retyped, tuple(changed))


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of floating-point tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        # A finite sum has only finite terms, and takes a tenth of the time.
        and not bool(torch.isfinite(tensor.sum()))
        and not bool(torch.isfinite(tensor).all())
    ]


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.detach().cpu(), other.detach().cpu()
    return torch.equal(one.to(other.dtype), other)
