"""Reading a config, and the switches of downstream configs: starting weights, frozen layers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

from gersp_mm.checkpoints.read import config_values
from gersp_mm.datasets.annotations import leaves
from gersp_mm.datasets.loading import (
    require_same_scale,
    scale_of,
    stored_meta,
    use_pixel_scale,
)
from gersp_mm.engine.checkpoint_loading import read_weights
from gersp_mm.engine.options import parse_options, value_at
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.engine.preflight.names import check_options, leave_out_former_arguments
from gersp_mm.results.protocol import FROZEN
from gersp_mm.utils.errors import UserError, check_choice
from gersp_mm.utils.paths import expand_home

PREFIX = "backbone."
NOT_GIVEN = "not-given"  # the value of `pretrained` in configs if GERSP_CHECKPOINT is not set
NO_CHECKPOINT = (
    "no weights to start from: give the exported backbone with --cfg-options pretrained=PATH or "
    "GERSP_CHECKPOINT=PATH in the environment, or start from scratch with --cfg-options "
    "pretrained=None"
)
# Values of the variable `frozen` of downstream configs, and the hosts' `frozen_stages` for each.
FROZEN_STAGES = {name: stages for stages, name in FROZEN.items() if stages in (-1, 1, 4)}


def read_config(
    path: str | os.PathLike, options: Mapping[str, Any] | Sequence[str] | None = None
) -> tuple[Config, list[Finding]]:
    """Read a config file, merge options into it and apply its switches.

    Args:
        path: A config file.
        options: ``key=value`` strings as typed, or values by dotted key.

    Returns:
        The config, and the findings about the options.

    Raises:
        UserError: The file cannot be read, or an option contradicts another one.
    """
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # A config is code and may raise any error.
        raise UserError(f"cannot read config {path}: {type(error).__name__}: {error}") from error
    expand_home(cfg._cfg_dict)
    scope = cfg.get("default_scope") or "mmengine"
    with DefaultScope.overwrite_default_scope(scope):
        parsed = expand_home(parse_options(options, cfg))
        _import_modules(cfg, parsed)
        findings = check_options(cfg, parsed)
        usable = all(finding.severity == "warning" for finding in findings)
        if usable:
            findings += leave_out_former_arguments(cfg, parsed)
    if usable:
        before = _switched(cfg)
        merge_options(cfg, parsed)
        _refuse_what_switches_replace(cfg, before)
        apply_switches(cfg)
    return cfg, findings


def _import_modules(cfg: Config, options: Mapping[str, Any]) -> None:
    """Import the modules of ``custom_imports`` in the options, as MMEngine does for a file."""
    given = {key: value for key, value in options.items() if key.startswith("custom_imports")}
    if not given:
        return
    named = Config(dict(custom_imports=cfg.get("custom_imports") or {}))
    named.merge_from_dict(given)
    try:
        import_modules_from_strings(**named.custom_imports)
    except Exception as error:  # Modules may raise any error.
        raise UserError(
            f"custom_imports={named.custom_imports} cannot be imported ({type(error).__name__}: "
            f"{error}). Correct it, or put the folder of the module into PYTHONPATH."
        ) from error


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Merge values into a config, and replace a None on the path of a key by a section.

    Args:
        cfg: Changed in place.
        options: Values by dotted key.

    Raises:
        UserError: A key lies below another key of the options that has a plain value.
    """
    for key in options:
        names = key.split(".")
        for depth in range(1, len(names)):
            section = ".".join(names[:depth])
            if section in options and not isinstance(options[section], Mapping):
                raise UserError(
                    f"the options {section}={options[section]} and {key} contradict each other. "
                    "Remove one of them."
                )
            holder = value_at(cfg, ".".join(names[: depth - 1])) if depth > 1 else cfg
            if isinstance(holder, (dict, Config)) and holder.get(names[depth - 1], cfg) is None:
                holder[names[depth - 1]] = ConfigDict()
    cfg.merge_from_dict(dict(options))


def _switched(cfg: Config) -> tuple[Any, Any]:
    """Return the model's values that ``frozen`` and ``pretrained`` set."""
    backbone = value_at(cfg, "model.backbone")
    return value_at(backbone, "frozen_stages"), value_at(backbone, "init_cfg.checkpoint")


def _refuse_what_switches_replace(cfg: Config, before: tuple[Any, Any]) -> None:
    """Refuse options that :func:`apply_switches` would silently replace."""
    stages, checkpoint = _switched(cfg)
    meant = FROZEN_STAGES.get(str(cfg.get("frozen")))
    if "frozen" in cfg and stages not in (before[0], meant):
        raise UserError(
            f"model.backbone.frozen_stages={stages} and frozen={cfg.frozen} contradict each other. "
            f"Use frozen alone: {', '.join(FROZEN_STAGES)}."
        )
    pretrained = cfg.get("pretrained", NOT_GIVEN)
    if checkpoint not in (before[1], pretrained) and pretrained != NOT_GIVEN:
        raise UserError(
            f"model.backbone.init_cfg.checkpoint={checkpoint} and pretrained={pretrained} "
            "contradict each other. Use pretrained alone."
        )


def apply_switches(cfg: Config) -> None:
    """Apply the variables ``pretrained`` and ``frozen`` of a downstream config to its model.

    ``pretrained`` is the path of a backbone file, or ``None`` for a start from scratch. ``frozen``
    is a key of :data:`FROZEN_STAGES`. If the file holds a pixel scale, the config's images are
    loaded with this scale. The scale is copied into the config, so that the file may move later.

    Args:
        cfg: Changed in place if it has these variables. A second call has no effect.

    Raises:
        UserError: ``frozen`` is unknown.
    """
    if "pretrained" in cfg:  # Downstream configs have it; pre-training takes it as an option.
        backbone = cfg.model.backbone
        if str(cfg.pretrained).lower() == "none":
            cfg.pretrained = None
            backbone.pop("init_cfg", None)  # The host's own initialisation remains.
        elif cfg.pretrained != NOT_GIVEN:
            named = backbone.get("init_cfg")  # An option may have set its prefix.
            prefix = named.get("prefix", PREFIX) if isinstance(named, Mapping) else PREFIX
            backbone.init_cfg = dict(
                type="Pretrained", checkpoint=str(cfg.pretrained), prefix=prefix
            )
            use_pixel_scale(cfg, scale_of(_meta_of(str(cfg.pretrained))))
    if "frozen" in cfg:
        check_choice("frozen", cfg.frozen, tuple(FROZEN_STAGES))
        if cfg.model.backbone.get("frozen_stages") != FROZEN_STAGES[cfg.frozen]:
            cfg.model.backbone.frozen_stages = FROZEN_STAGES[cfg.frozen]


def _meta_of(address: str) -> Mapping[str, Any]:
    """Return the meta of a file of weights; empty if the file cannot be read.

    A remote file is fetched, but not the hosts' weights, such as ``torchvision://resnet50``,
    because they have no meta.
    """
    if not address.startswith(("http://", "https://")):
        return stored_meta(address)
    with contextlib.suppress(UserError):  # The model reports the error when it loads the file.
        return read_weights(address).get("meta") or {}
    return {}


def load_as_trained(cfg: Config, path: str, meta: Mapping[str, Any] | None = None) -> None:
    """Load images as in the training of a checkpoint that is tested or resumed.

    The pixel scale of the checkpoint replaces that of ``pretrained``.

    Args:
        cfg: Changed in place.
        path: The checkpoint, a path or one of MMEngine's addresses.
        meta: Meta of the checkpoint, if it has been read.

    Raises:
        UserError: A loader in the config contradicts the checkpoint.
    """
    if meta is None:
        remote = "://" in path
        meta = (read_weights(path).get("meta") or {}) if remote else stored_meta(path)
    use_pixel_scale(cfg, scale_of(meta))
    require_same_scale(cfg, meta, path)


def require_weights(cfg: Config) -> None:
    """Refuse a downstream config to which neither weights nor ``pretrained=None`` were given.

    Raises:
        UserError: There are no weights to start from, or a switch was not applied to the model.
    """
    if "pretrained" not in cfg or cfg.get("resume") or cfg.get("load_from"):
        return
    init_cfg = cfg.model.backbone.get("init_cfg")
    checkpoint = init_cfg.get("checkpoint") if init_cfg else None
    if checkpoint == NOT_GIVEN and cfg.pretrained == NOT_GIVEN:
        raise UserError(NO_CHECKPOINT)
    if cfg.pretrained not in (NOT_GIVEN, checkpoint):
        raise UserError(
            f"pretrained={cfg.pretrained} is not in model.backbone.init_cfg, because only the "
            "tools of gersp_mm apply it. Use them, or set GERSP_CHECKPOINT=PATH in the environment "
            "(model.backbone.init_cfg=None to start from scratch)."
        )
    frozen = cfg.model.backbone.get("frozen_stages")
    if cfg.get("frozen") in FROZEN_STAGES and FROZEN_STAGES[cfg.frozen] != frozen:
        raise UserError(
            f"frozen={cfg.frozen} is not in model.backbone.frozen_stages ({frozen}), because only "
            "the tools of gersp_mm apply it. Use them, or set "
            f"model.backbone.frozen_stages={FROZEN_STAGES[cfg.frozen]}."
        )


def require_trained_switches(cfg: Config, meta: Mapping[str, Any], path: str) -> None:
    """Refuse to test a checkpoint under another protocol than it was trained with.

    Args:
        cfg: The config that is tested.
        meta: Meta of the checkpoint.
        path: Path of the checkpoint, for the message.

    Raises:
        UserError: The training froze other layers than the config says.
    """
    frozen = config_values(meta.get("cfg")).get("frozen")
    if isinstance(frozen, str) and cfg.get("frozen", frozen) != frozen:
        raise UserError(
            f"{path} was trained with frozen={frozen}, not {cfg.frozen}: add --cfg-options "
            f"frozen={frozen}"
        )


def use_tta(cfg: Config, config: str) -> None:
    """Switch a config to its test-time augmentation.

    Args:
        cfg: Changed in place.
        config: File of the config, for messages.

    Raises:
        UserError: The config defines no test-time augmentation.
    """
    if cfg.get("default_scope") == "mmrotate":
        raise UserError("--tta: mmrotate has no test-time augmentation. Leave --tta out.")
    missing = [name for name in ("tta_model", "tta_pipeline") if not cfg.get(name)]
    if missing:
        raise UserError(f"--tta: {config} has no {' and no '.join(missing)}. Leave --tta out.")
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    for dataset in leaves(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline
