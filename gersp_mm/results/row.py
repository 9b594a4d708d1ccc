"""One result: the value, its protocol, its data set, and the weights and code behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, FiniteFloat, computed_field, model_validator

from gersp_mm.results.protocol import AnyProtocol, Count, Typed, Unparsed

RANDOM = "random"  # `Pretraining.method` of weights that were never trained
# Names of random weights in configs, checkpoints and rows of all versions, in lower case.
NAMES_OF_RANDOM = (RANDOM, "random initialisation", "random weights", "from scratch")


class SplitRef(Typed):
    """The images of a data set on which a model was trained and evaluated.

    Attributes:
        name: The split's name.
        train: The training part.
        part: The part that was evaluated; None if the name of the split says it.
        sha256: First eight digits of the lists' hash, for lists that have no fixed content.
        sizes: Number of images of each part, for lists that have no fixed content.
    """

    name: str
    train: str = "train"
    part: str | None = "test"
    sha256: str | None = None
    sizes: dict[str, int] | None = None

    def __str__(self) -> str:
        """Return the split as it stands in sentences."""
        if self.sizes:
            sizes = ", ".join(f"{count} {part}" for part, count in self.sizes.items())
            return f"{self.name} {self.sha256} ({sizes})"
        if self.part is None:
            return self.name
        return f"{self.name}, {self.train} to {self.part}"


class Pretraining(Typed):
    """The pre-training of the weights that a value was measured with.

    Attributes:
        method: ``GeRSP``, ``MoCo-IN``, ...; ``random`` for weights that were never trained; None
            if unknown.
        epochs: Length of the pre-training.
        updates: Length of the pre-training in steps, if it is counted in steps.
        options: Options of the recipe that were changed, by dotted key.
        statistics: ``own`` if BatchNorm's statistics were estimated again from other images.
    """

    method: str | None = None
    epochs: int | None = None
    updates: int | None = None
    options: dict[str, Any] = {}
    statistics: Literal["own", "as_trained"] = "as_trained"

    @classmethod
    def of_name(cls, name: str | None) -> Pretraining:
        """Return random weights for any of their names, and unknown fields for other names."""
        return cls(method=RANDOM if str(name).lower() in NAMES_OF_RANDOM else None)

    @classmethod
    def of_origin(cls, origin: Mapping[str, Any] | None) -> Pretraining:
        """Return the pre-training that the ``meta`` of a file records.

        Args:
            origin: ``meta`` of an exported backbone, ``meta['pretrained']`` of a checkpoint, or
                None.
        """
        origin = origin or {}
        if (named := cls.of_name(origin.get("method"))).method:
            return named
        return cls(
            method=origin.get("method"),
            epochs=origin.get("epoch"),
            updates=origin.get("iterations"),
            statistics="own" if origin.get("statistics") == "own" else "as_trained",
        )


class Column(Typed):
    """The fields that comparable values share: a column of a table."""

    dataset: str
    split: SplitRef | None = None
    measured_by: AnyProtocol
    model: str
    metric: str
    overrides: dict[str, Any] = {}

    def __hash__(self) -> int:
        """Hash the content."""
        return hash(self.model_dump_json())

    @property
    def sentence(self) -> str:
        """Protocol, overrides and split in a sentence for people."""
        options = [f"{key}={_option(value)}" for key, value in self.overrides.items()]
        changed = f"changed: {' '.join(options)}" if options else ""
        split = "" if self.split is None else str(self.split)
        return ", ".join(filter(None, (self.measured_by.sentence, changed, split)))

    @property
    def short(self) -> str:
        """Protocol and metric in a few words, for the head of a table."""
        return f"{self.measured_by.short} {self.metric}".strip()


class Identity(Column):
    """The fields that distinguish a row from all others."""

    seed: int | None
    pretraining: str | None
    checkpoint_sha256: str | None
    config: str

    __hash__ = Column.__hash__


class Row(Identity):
    """One measured value; one line of a result file.

    Attributes:
        dataset: Title of the data set.
        split: The images; None in rows of older files, whose sentence names them.
        measured_by: The protocol.
        model: Name of the network.
        metric: Name of the metric.
        overrides: Options of the config that change results and that no protocol field holds.
        seed: Seed of all random choices; None if there are none.
        pretraining: Label of the weights that the measurement started from.
        checkpoint_sha256: Hash of the file of the weights; None for random weights.
        config: Path of the config or plan in the repository.
        value: The value, in per cent except for losses.
        settings: The pre-training of the weights.
        commit: Commit of the code, with ``-dirty`` if files differed from it.
        hardware: Names of the devices.
        threads: Number of PyTorch's threads; None if unknown.
        versions: Versions of Python and of the libraries.
        seconds: Duration of the measurement in seconds.
        schema_version: Version of these fields.
    """

    value: FiniteFloat = Field(strict=True)
    settings: Pretraining = Pretraining()
    commit: str | None
    hardware: str | None
    threads: Count | None = None
    versions: dict[str, str] | None
    seconds: float | None
    schema_version: Literal[2] = 2

    @model_validator(mode="before")
    @classmethod
    def _without_sentence(cls, content: Any) -> Any:
        """Drop the generated sentence, but keep it for older rows, which have no other protocol."""
        if not isinstance(content, Mapping) or "protocol" not in content:
            return content
        content = dict(content)
        sentence = content.pop("protocol")
        if "schema_version" not in content and "measured_by" not in content:
            content["measured_by"] = Unparsed(text=str(sentence))
            content["settings"] = Pretraining.of_name(content.get("pretraining"))
        return content

    @computed_field  # type: ignore[prop-decorator]
    @property
    def protocol(self) -> str:
        """The protocol in a sentence for people; files hold it, and no code reads it."""
        return self.sentence

    @property
    def column(self) -> Column:
        """The column of a table in which the value stands."""
        return Column(**{name: getattr(self, name) for name in Column.model_fields})

    @property
    def identity(self) -> Identity:
        """The fields that distinguish the row from all others."""
        return Identity(**{name: getattr(self, name) for name in Identity.model_fields})

    def as_dict(self) -> dict[str, Any]:
        """Return plain data in the order of the fields in files."""
        content = self.model_dump(mode="json")
        order = ("dataset", "protocol", "model", "metric", "value", "seed", "pretraining",
                 "checkpoint_sha256", "config", "commit", "hardware", "threads", "versions",
                 "seconds")  # fmt: skip
        return {name: content[name] for name in (*order, *content) if name in content}


def label_of(origin: Mapping[str, Any] | None) -> str | None:
    """Return the label in rows of the weights that a training started from.

    Args:
        origin: ``meta['pretrained']`` of a checkpoint, or None if unknown.
    """
    settings = Pretraining.of_origin(origin)
    if settings.method == RANDOM:
        return RANDOM
    if settings.method is None:
        return os.path.basename((origin or {}).get("path") or "") or None
    return settings.method + (f", {settings.epochs} epochs" if settings.epochs else "")


def _option(value: Any) -> str:
    return str(value).replace(" ", "")
