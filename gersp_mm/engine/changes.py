"""Options that influence results and in which a run differs from its config file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from gersp_mm.checkpoints.read import UNREAD, config_values
from gersp_mm.datasets.loading import INSTEAD, PIXEL_SCALE
from gersp_mm.engine.options import plain_leaves

TRAINING = ("auto_scale_lr", "custom_hooks", "model", "optim_wrapper", "param_scheduler",
            "train_cfg", "train_dataloader")  # fmt: skip
TESTING = ("model", "test_cfg", "test_dataloader", "test_evaluator")
# Options on the place of data or the speed of reading, which do not influence results.
HARMLESS = (
    "*.backend_args", "*.data_root", "*.disable_subprocess_warning", "*.file_client_args",
    "*.init_cfg", "*.init_cfg.*", "*.multiprocessing_context", "*.num_workers",
    "*.outfile_prefix", "*.persistent_workers", "*.pin_memory", "*.prefetch_factor", "*.timeout",
    "auto_scale_lr.base_batch_size", "test_dataloader.batch_size", "train_cfg.dynamic_intervals",
    "train_cfg.val_begin", "train_cfg.val_interval",
)  # fmt: skip
NOTHING = object()


def changes_of_run(
    shipped: Mapping[str, Any], tested: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the values that influence results and differ from the config file.

    Args:
        shipped: The config as its file states it.
        tested: The config that is tested.
        meta: Meta of the tested checkpoint. Its config is that of the training; if there is none,
            the tested config is assumed.

    Returns:
        Values by dotted key, sorted. The key ``checkpoint`` exists if the training was unfinished.
    """
    trained = config_values((meta or {}).get("cfg"))
    known = "train_cfg" in trained and "model" in trained
    found = _differences(shipped, trained if known else tested, TRAINING)
    found.update(_differences(shipped, tested, TESTING))
    progress = _progress(trained.get("train_cfg"), meta or {}) if known else None
    if progress:
        found["checkpoint"] = progress
    return dict(sorted(found.items()))


def _differences(
    shipped: Mapping[str, Any], other: Mapping[str, Any], sections: tuple[str, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    held = [cfg.get(section) for cfg in (shipped, other) for section in sections]
    roots = [root for value in held for root in _data_roots(value)]
    for section in sections:
        sides = [dict(_below_roots(cfg.get(section), section, roots)) for cfg in (shipped, other)]
        by_weights = _loaded_as_the_weights(sides[1])
        for key in {**sides[0], **sides[1]}:
            before, after = (side.get(key, NOTHING) for side in sides)
            harmless = any(fnmatchcase(key, pattern) for pattern in HARMLESS)
            harmless = harmless or key.startswith(by_weights)
            if harmless or UNREAD in (before, after) or before == after:
                continue
            found[key] = None if after is NOTHING else after
    return found


def _loaded_as_the_weights(side: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the prefixes of the keys of loaders that the starting weights set, not the user."""
    mark = f".{PIXEL_SCALE}.{INSTEAD}"
    transforms = [key.removesuffix(mark) for key in side if key.endswith(mark)]
    return tuple(f"{key}.{name}" for key in transforms for name in ("type", PIXEL_SCALE))


def _below_roots(value: Any, key: str, roots: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield values by their dotted keys, and paths without the folder of the data."""
    for name, leaf in plain_leaves(value, key):
        if isinstance(leaf, str):
            root = next((root for root in roots if leaf.startswith(root.rstrip("/") + "/")), "")
            leaf = leaf.removeprefix(root).lstrip("/") if root else leaf
        if leaf is not None:
            yield name, leaf


def _data_roots(section: Any) -> list[str]:
    named = (leaf for key, leaf in plain_leaves(section) if key.rpartition(".")[2] == "data_root")
    return [root for root in named if isinstance(root, str) and root]


def _progress(train_cfg: Any, meta: Mapping[str, Any]) -> str | None:
    if not isinstance(train_cfg, Mapping):
        return None
    for key, unit in (("max_epochs", "epoch"), ("max_iters", "iter")):
        whole, done = train_cfg.get(key), meta.get(unit)
        if isinstance(whole, int) and isinstance(done, int) and done < whole:
            return f"{unit} {done} of {whole}"
    return None
