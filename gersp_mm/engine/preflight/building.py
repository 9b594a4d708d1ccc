"""One-line messages for errors while MMEngine builds a run from its config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config

from gersp_mm.engine.preflight.names import _flat, nearest_type, parameters
from gersp_mm.utils.errors import UserError, first_line, listed, nearest

# Methods of MMEngine's Runner, and the section of the config that each reads.
METHODS = {
    "__init__": "",
    "_check_scheduler_cfg": "param_scheduler",
    "build_evaluator": "val_evaluator",
    "build_log_processor": "log_processor",
    "build_logger": "log_level",
    "build_optim_wrapper": "optim_wrapper",
    "build_param_scheduler": "param_scheduler",
    "build_train_loop": "train_cfg",
    "build_val_loop": "val_cfg",
    "build_test_loop": "test_cfg",
    "build_visualizer": "visualizer",
    "scale_lr": "auto_scale_lr",
    "set_randomness": "randomness",
    "setup_env": "env_cfg",
}
BUILDERS = ("build_from_cfg", "build_scheduler_from_cfg")
PASSED_ON = (MemoryError, torch.cuda.OutOfMemoryError)


@contextmanager
def told_in_one_line(cfg: Config) -> Iterator[None]:
    """Turn an error while a run is built into a :class:`UserError` that names the field.

    An error of the running loop keeps its traceback.

    Args:
        cfg: The config that is built.

    Raises:
        UserError: A part of the run cannot be built.
    """
    try:
        yield
    except PASSED_ON:
        raise
    except Exception as error:
        text = explain(error, cfg)
        if text is None:
            raise
        raise UserError(text) from error


def explain(error: Exception, cfg: Config) -> str | None:
    """Return one line on the part that cannot be built, or None for an error of another kind."""
    frames = list(_frames(error))
    if any(_is_running(frame) for frame in frames):
        return None
    built = [f for f in frames if f.f_code.co_name in BUILDERS and _is_mmengine(f)]
    if not built:
        return _explain_method(error, frames, cfg)
    frame = built[-1]
    part = frame.f_locals.get("cfg") or {}
    where = find_field(cfg, part)
    kind = part.get("type")
    name = f"{where} ({_name(kind)})" if where else _name(kind)
    if isinstance(error, UserError):
        is_loop = where in ("train_cfg", "val_cfg", "test_cfg")
        return f"{where}: {error}" if where and not is_loop else str(error)
    registry = frame.f_locals.get("registry")
    function = frame.f_locals.get("obj_cls") or frame.f_locals.get("scheduler_cls")
    if function is None and isinstance(error, KeyError) and isinstance(kind, str):
        close = nearest_type(kind, registry) if registry is not None else None
        hint = f"Did you mean {close}? " if close else ""
        field = f"{where}.type" if where else "type"
        return f"{field}={kind!r} is not known. {hint}Correct the name."
    return _explain_call(error, name, where, function, part)


def _explain_call(
    error: Exception, name: str, where: str, function: Any, part: Mapping[str, Any]
) -> str:
    text = str(error)
    prefix = f"{where}." if where else ""
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    missing = re.search(r"missing \d+ required .*argument.*?: (.*)", text)
    # The error may come from a class that this class calls, which has other arguments.
    if unexpected and unexpected[1] in part and function is not None:
        known, _ = parameters(function)
        close = nearest(unexpected[1], known, 0.6)
        hint = f"Did you mean {prefix}{close}? Correct the name" if close else "Remove it"
        return f"{name} has no argument {unexpected[1]}. {hint}."
    if missing and isinstance(error, TypeError):
        first = missing[1].split("'")[1]
        return f"{name} needs {missing[1]}. Set {prefix}{first}."
    values = [f"{k}={v!r}" for k, v in part.items() if k != "type" and not isinstance(v, Mapping)]
    which = f": {listed(values, 4)}" if values else ""
    return f"{name} cannot be built ({first_line(error)}). Correct its values{which}."


def _explain_method(error: Exception, frames: list[FrameType], cfg: Config) -> str | None:
    """Explain an error of MMEngine's Runner itself."""
    if isinstance(error, UserError):
        return None
    for frame in reversed(frames):
        if frame.f_globals.get("__name__") != "mmengine.runner.runner":
            continue
        method = frame.f_code.co_name
        if method == "call_hook" and "unexpected keyword argument" in str(error):
            name = type(frame.f_locals.get("hook")).__name__
            text = first_line(error).partition(" in <")[0]
            return f"{name} cannot start ({text}). Correct its values."
        if method == "build_dataloader":
            field = find_field(cfg, frame.f_locals.get("dataloader") or {}) or "a dataloader"
            unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unexpected:
                return f"{field} has no {unexpected[1]}. Remove it, or correct the name."
            return f"{field} cannot be built: {first_line(error)}. Correct its values."
        if method in METHODS:
            where = METHODS[method] or "the config"
            return f"{where} cannot be used: {first_line(error)}. Correct its values."
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _is_mmengine(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("mmengine.")


def _is_running(frame: FrameType) -> bool:
    from mmengine.runner import BaseLoop

    is_loop = isinstance(frame.f_locals.get("self"), BaseLoop)
    return is_loop and frame.f_code.co_name in ("run", "run_epoch", "run_iter")


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", "a part of the config")


def find_field(cfg: Any, part: Mapping[str, Any]) -> str:
    """Return the dotted key at which a config holds a part, or an empty string.

    A part that has been changed is found by its type, if no other part has this type.
    """
    same_type = []
    for key, value in _flat(cfg):
        if isinstance(value, Mapping):
            if value == part:
                return key
            if "type" in part and value.get("type") == part.get("type"):
                same_type.append(key)
    return same_type[0] if len(same_type) == 1 else ""
