"""A check that each view depends only on its image and seed, and that views have one size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gersp_mm.datasets.pipelines import Pipeline
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything

PIPELINES = {"remote_sensing": "rs_pipeline", "natural": "natural_pipeline"}
SEEDS = range(8)  # All of them skip a transform of probability 0.3 in 1 of 17 cases.


def check_pipelines(runner: Any) -> Iterator[Finding]:
    """Run pipelines that hold others' transforms on three images, twice with the same seeds."""
    loader = runner.train_dataloader
    for source, name in PIPELINES.items():
        pipeline = getattr(loader.dataset, name, None)
        reader = getattr(loader.dataset, "readers", {}).get(source)
        if reader is None or not isinstance(pipeline, Pipeline):
            continue
        if pipeline.transforms and all(
            getattr(transform, "takes_tensor", False) for transform in pipeline.transforms
        ):
            continue  # The pipeline holds only our transforms.
        field = f"train_dataloader.dataset.{name}"
        try:
            with preserved_rng_state():
                seed_everything(0, cpu_only=True)
                last = len(reader.source) - 1
                images = [reader.read(number, []) for number in sorted({0, last // 2, last})]
                problem = _problem(pipeline, images, loader.batch_size or 1)
        except UserError as error:
            problem = str(error), ""
        if problem:
            yield Finding(field, *problem)


def _problem(
    pipeline: Pipeline, images: list[dict[str, Any]], batch: int
) -> tuple[str, str] | None:
    """Return the problem of a pipeline, and the fix."""
    sizes: dict[str, None] = {}
    same = True
    for number, image in enumerate(images):
        for seed in SEEDS if number == 0 else SEEDS[:2]:
            view = _run(pipeline, image, seed)
            same = same and _bytes(view) == _bytes(_run(pipeline, image, seed))
            sizes["×".join(map(str, view["img"].shape[1:]))] = None
    if not same:
        return _culprit(pipeline, images), (
            "Let it draw from Python's random, NumPy's or PyTorch's global functions, or from a "
            "generator that it keeps as an attribute, and keep nothing of earlier images."
        )
    noise = torch.from_numpy(np.random.randint(0, 256, images[0]["img"].shape, np.uint8))
    for steps in range(1, len(pipeline.transforms) + 1):
        if all(
            _bytes(_run(pipeline, images[0], seed, steps))
            == _bytes(_run(pipeline, {**images[0], "img": noise}, seed, steps))
            for seed in SEEDS
        ):
            return (
                f"{pipeline.place(steps - 1)} does not use the image that it gets.",
                "The images are decoded already: remove it.",
            )
    if batch > 1 and len(sizes) > 1:
        return (
            f"dataset.{pipeline.name} gives views of varying size ({' and '.join([*sizes][:2])} "
            "pixels), which do not form a batch.",
            "End it with a transform that gives one size, such as "
            "dict(type='torchvision/Resize', size=(224, 224)).",
        )
    return None


def _culprit(pipeline: Pipeline, images: list[dict[str, Any]]) -> str:
    for steps in range(1, len(pipeline.transforms) + 1):
        for image in images:
            for seed in SEEDS:
                first, second = (_bytes(_run(pipeline, image, seed, steps)) for _ in range(2))
                if first != second:
                    return (
                        f"{pipeline.place(steps - 1)} gives two results for the same image and "
                        "seed, so that no run could be repeated or resumed."
                    )
    return f"dataset.{pipeline.name} gives two results for the same image and seed."


def _run(
    pipeline: Pipeline, image: dict[str, Any], seed: int, steps: int | None = None
) -> dict[str, Any]:
    seed_everything(seed, cpu_only=True)
    pipeline.seed_generators()
    return pipeline.view(dict(image), steps)


def _bytes(view: dict[str, Any]) -> tuple[Any, ...]:
    pixels = np.asarray(view["img"])
    return pixels.shape, pixels.tobytes(), np.asarray(view.get("draw", ())).tobytes()
