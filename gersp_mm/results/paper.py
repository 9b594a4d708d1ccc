"""The paper's values, and the columns of ours that they are comparable with."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import yaml

from gersp_mm.results.protocol import Typed
from gersp_mm.results.row import RANDOM, Column, Pretraining, SplitRef
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.validation import validated

FIELDS = (
    "table", "dataset", "model", "metric", "pretraining", "pretraining_data", "value", "std",
)  # fmt: skip


class Requirements(Typed):
    """The fields that have to be equal for a column to be comparable with a table of the paper.

    Attributes:
        datasets: Our name of each data set, by the paper's name.
        models: Our name of each model, by the paper's name.
        metric: Our name of the metric.
        split: Our split.
        measured_by: Fields of the protocol, by name; None if no column is comparable.
        pretrainings: Further fields of the protocol, by the paper's names of pre-trainings.
    """

    datasets: dict[str, str] = {}
    models: dict[str, str] = {}
    metric: str | None = None
    split: SplitRef | None = None
    measured_by: dict[str, Any] | None = None
    pretrainings: dict[str, dict[str, Any]] = {}


class PaperValue(Typed):
    """One value of the paper: a line of ``paper.csv``."""

    table: str
    dataset: str
    model: str
    metric: str
    pretraining: str
    value: float
    std: float | None
    requirements: Requirements

    @property
    def text(self) -> str:
        """Value ± standard deviation, where the paper has one."""
        return f"{self.value:g}" + ("" if self.std is None else f" ± {self.std:g}")

    @property
    def name(self) -> str:
        """The pre-training; random weights have the name that our rows use."""
        random = Pretraining.of_name(self.pretraining).method == RANDOM
        return RANDOM if random else self.pretraining

    @property
    def dataset_of_ours(self) -> str:
        """Our name of the data set."""
        return self.requirements.datasets.get(self.dataset, self.dataset)

    def matches(self, column: Column) -> bool:
        """Return whether the value may stand next to the values of a column."""
        needed = self.requirements
        if needed.measured_by is None or column.overrides:
            return False
        ours = (column.dataset, column.model, column.metric, column.split)
        model = needed.models.get(self.model)
        if ours != (self.dataset_of_ours, model, needed.metric, needed.split):
            return False
        wanted = {**needed.measured_by, **needed.pretrainings.get(self.pretraining, {})}
        fields = dict(column.measured_by)
        return all(fields.get(name) == value for name, value in wanted.items())


def read_paper(path: str | os.PathLike) -> list[PaperValue]:
    """Read ``results/paper.csv`` and its requirements in ``paper.yml`` next to it.

    Args:
        path: The ``.csv`` file. Without a ``.yml`` file of the same name no value is comparable.

    Raises:
        UserError: The file does not exist, or a line is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--paper: there is no file {path}")
    second = path.with_suffix(".yml")
    content = yaml.safe_load(second.read_text(encoding="utf-8")) if second.is_file() else None
    tables = validated(dict[str, Requirements], content or {}, str(second))
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise UserError(f"{path}: the first line must be {','.join(FIELDS)}")
        return [
            validated(
                PaperValue,
                {
                    **{name: text for name, text in row.items() if name != "pretraining_data"},
                    "std": row["std"] or None,
                    "requirements": tables.get(row["table"], Requirements()),
                },
                f"{path}, line {number}",
            )
            for number, row in enumerate(reader, 2)
        ]
