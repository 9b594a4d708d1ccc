"""The submission of a config to a test server, which replaces its test."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from gersp_mm.engine.options import parse_options, value_at
from gersp_mm.evaluation.submission import Submission
from gersp_mm.resources import list_configs, resource
from gersp_mm.utils.errors import UserError, check_flag


def choose_submission(
    cfg: Config, config: str, folder: str | None, options: Sequence[str] | None
) -> Submission | None:
    """Replace the test of a config by its submission, if requested or if there is no other test.

    Args:
        cfg: Changed in place.
        config: File of the config, for messages.
        folder: Folder of the submission; ``''`` for ``<work dir>/submission``, None for no
            submission.
        options: Options of the command, as ``key=value``.

    Raises:
        UserError: The config has no submission, or an option contradicts it.
    """
    known = cfg.get("submission")
    only = known is not None and is_only_submission(known)
    if folder is None:
        if not only:
            return None
        print(f"{config} can only write a submission, so --submission is assumed")
    if known is None:
        names = [name for name in list_configs() if name.startswith("downstream/")]
        names = [n for n in names if "submission" in Config.fromfile(resource("configs", n))]
        raise UserError(
            f"--submission: {config} has no `submission`. Choose a config with one: "
            f"{', '.join(f'configs/{name}' for name in names)}"
        )
    if known.get("kind") not in ("dota", "loveda"):
        raise UserError(
            f"--submission: submission.kind of {config} must be 'dota' or 'loveda', got "
            f"{known.get('kind')!r}"
        )
    given = parse_options(options, cfg)
    if not only:
        carry_options(known, given)
        cfg.test_dataloader, cfg.test_evaluator = known.test_dataloader, known.test_evaluator
    refuse_evaluator_options(cfg, given)
    if not cfg.test_dataloader.get("num_workers"):
        # PyTorch rejects persistent workers without worker processes.
        cfg.test_dataloader.persistent_workers = False
    submission = Submission(known.kind, Path(folder or os.path.join(cfg.work_dir, "submission")))
    submission.prepare(cfg.test_evaluator)
    return submission


def is_only_submission(known: Any) -> bool:
    """Return whether a config can only write a submission: ``submission.only``.

    Configs of earlier versions lack the field; of these, only DOTA's have no other test.

    Raises:
        UserError: The section or the field is of another type.
    """
    if not isinstance(known, Mapping):
        raise UserError(f"submission={known!r} is not a dict. Write submission=dict(kind=...).")
    only = known.get("only", known.get("kind") == "dota")
    check_flag("submission.only", only)
    return only


def carry_options(known: Any, options: Mapping[str, Any]) -> None:
    """Apply options of the replaced test to the submission.

    Raises:
        UserError: The submission has no such value.
    """
    for key, value in options.items():
        section = key.partition(".")[0]
        if section not in ("test_dataloader", "test_evaluator"):
            continue
        if "." not in key or value_at(known, key) is None:
            raise UserError(
                f"--submission: {key} belongs to the test with labels, and the submission has no "
                f"such value. Leave it out, or set submission.{key}."
            )
        if f"submission.{key}" not in options:
            holder = value_at(known, key.rpartition(".")[0])
            holder[key.rpartition(".")[2]] = value


def refuse_evaluator_options(cfg: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that contradict a submission.

    Raises:
        UserError: An option names another output, or turns the output off.
    """
    for key in options:
        if key.rpartition(".")[2] in ("outfile_prefix", "output_dir") and "test_evaluator" in key:
            raise UserError(f"{key} does not apply to a submission. Use --submission DIR.")
    for name in ("format_only", "merge_patches"):
        if cfg.test_evaluator.get(name) is False:
            raise UserError(
                f"test_evaluator.{name}=False gives no submission. Leave it out, or set "
                "submission.only=False for a test with labels."
            )
