"""Checks of option names: every option has to have an effect."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gersp_mm.engine.options import value_at
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.errors import listed, nearest

# Top-level keys that MMEngine or this package reads besides the parameters of `Runner`.
TOP_LEVEL = {
    "activation_checkpointing", "compile", "custom_imports", "data_preparation", "default_scope",
    "efficient_conv_bn_eval", "evaluation", "find_unused_parameters", "frozen",
    "model_wrapper_cfg", "pretrained", "submission", "sync_bn", "work_dir",
}  # fmt: skip
# Names in sections without a type, and names that MMEngine's builders read.
SECTIONS: dict[str, set[str]] = {
    "*_dataloader": {
        "batch_sampler", "batch_size", "collate_fn", "dataset", "disable_subprocess_warning",
        "drop_last", "generator", "in_order", "multiprocessing_context", "num_batch_per_epoch",
        "num_workers", "persistent_workers", "pin_memory", "pin_memory_device", "prefetch_factor",
        "sampler", "shuffle", "timeout", "worker_init_fn",
    },
    "auto_scale_lr": {"base_batch_size", "enable"},
    "env_cfg": {"cudnn_benchmark", "dist_cfg", "mp_cfg", "resource_limit"},
    "env_cfg.mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "evaluation": {"dataset", "measured_by", "metrics", "model", "protocol", "split"},
    "optim_wrapper.clip_grad": {
        "clip_value", "error_if_nonfinite", "foreach", "max_norm", "norm_type", "type",
    },
    "optim_wrapper.paramwise_cfg": {
        "bias_decay_mult", "bias_lr_mult", "bypass_duplicate", "custom_keys", "dcn_offset_lr_mult",
        "dwconv_decay_mult", "flat_decay_mult", "norm_decay_mult",
    },
    "randomness": {"deterministic", "diff_rank_seed", "seed"},
}  # fmt: skip
CLOSED = ("*_dataloader", "auto_scale_lr", "env_cfg", "env_cfg.mp_cfg", "evaluation", "randomness")
FREE = ("*.custom_keys*", "*.data_prefix", "*.metainfo", "evaluation.metrics", "submission*")
DEFAULT_HOOKS = {
    "checkpoint", "logger", "param_scheduler", "runtime_info", "sampler_seed", "timer",
}  # fmt: skip
DEFAULT_TYPES = {
    "log_processor": "LogProcessor",
    "optim_wrapper": "OptimWrapper",
    "test_cfg": "TestLoop",
    "val_cfg": "ValLoop",
    "visualizer": "Visualizer",
}
# Names that builders remove from a typed section before they call its class.
TAKEN: dict[str, set[str]] = {
    "*": {"type", "_scope_", "_delete_"},
    "*norm_cfg": {"requires_grad"},
    "custom_hooks.*": {"priority"},
    "default_hooks.*": {"priority"},
    "optim_wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "param_scheduler*": {"convert_to_iter_based", "epoch_length"},
    "train_cfg": {"by_epoch"},
}
GIVEN = {"dataloader", "dataset", "optimizer", "runner", "self"}  # arguments from the builders
REGISTRIES = {  # the likely registry of a section, by the first name of its key
    "custom_hooks": ("HOOKS",),
    "default_hooks": ("HOOKS",),
    "log_processor": ("LOG_PROCESSORS",),
    "model": ("MODELS", "TASK_UTILS", "WEIGHT_INITIALIZERS", "TRANSFORMS"),
    "optim_wrapper": ("OPTIM_WRAPPERS", "OPTIMIZERS"),
    "param_scheduler": ("PARAM_SCHEDULERS",),
    "test_cfg": ("LOOPS",),
    "test_evaluator": ("METRICS", "EVALUATOR"),
    "train_cfg": ("LOOPS",),
    "val_cfg": ("LOOPS",),
    "val_evaluator": ("METRICS", "EVALUATOR"),
    "visualizer": ("VISUALIZERS", "VISBACKENDS"),
}
DATA_REGISTRIES = ("DATASETS", "TRANSFORMS", "DATA_SAMPLERS", "FUNCTIONS")
# Sections whose builders take more names than the class itself.
LAYERS = ("model.*.conv_cfg", "model.*.dcn", "model.*.plugins*", "model.*.upsample_cfg")


def top_level_names() -> set[str]:
    """Return the top-level keys that have an effect."""
    from mmengine.runner import Runner

    return {*inspect.signature(Runner.__init__).parameters} - {"self", "cfg"} | TOP_LEVEL


def check_options(shipped: Config, options: Mapping[str, Any]) -> list[Finding]:
    """Return findings on the options that have no effect.

    Args:
        shipped: The config as its file states it.
        options: Values by dotted key.
    """
    changed = Config(shipped._cfg_dict.to_dict())
    for key, value in options.items():
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # reported key by key
            changed.merge_from_dict({key: value})
    found = []
    for key, value in options.items():
        finding = _check_key(key, value, shipped, changed)
        if finding is not None:
            found.append(finding)
    return found


def check_config_names(cfg: Config) -> Iterator[Finding]:
    """Find misspelled names in a config, at the top level and in sections without type."""
    known = top_level_names()
    for name in cfg:
        close = nearest(name, known, 0.9) if name not in known else None
        if close is not None:
            yield Finding(name, f"the config's {name} changes nothing.", f"Rename it to {close}.")
    for section, values in _sections(cfg):
        allowed = _matching(SECTIONS, section)
        for name in values:
            close = nearest(str(name), allowed, 0.85) if name not in allowed else None
            if close is not None:
                yield Finding(
                    f"{section}.{name}",
                    f"{section}.{name} changes nothing.",
                    f"Rename it to {close}.",
                )


def _sections(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sections of a config whose names are all known."""
    for section in [*SECTIONS, *(name for name in cfg if name.endswith("_dataloader"))]:
        values = value_at(cfg, section) if "*" not in section else None
        if isinstance(values, Mapping):
            yield section, values


def _check_key(key: str, value: Any, shipped: Config, changed: Config) -> Finding | None:
    names = key.split(".")
    if names[0] not in top_level_names() or (names[0] == "frozen" and "frozen" not in shipped):
        return _check_top_level(key, shipped)
    before: Any = shipped
    after: Any = changed
    for depth, name in enumerate(names):
        section = ".".join(names[:depth])
        if isinstance(before, (list, tuple)):
            problem = _check_number(section, name, before)
            if problem is not None:
                return Finding(key, *problem)
            before, after = before[int(name)], value_at(after, name)
            continue
        if not isinstance(before, (Mapping, Config, type(None))):
            return Finding(
                key, f"{key} cannot be set, because {section} is {before!r}, not a dict.",
                f"Set {section} itself.",
            )  # fmt: skip
        if depth and (before is None or name not in before):
            finding = _check_name(key, section, name, before or {}, after)
            if finding is not None:
                return finding
        before = before.get(name) if before is not None else None
        after = after.get(name) if isinstance(after, (Mapping, Config)) else None
    is_section = isinstance(before, Mapping) and before
    if is_section and value is not None and not isinstance(value, Mapping):
        return Finding(
            key, f"{key}={value} would replace a whole section.",
            f"Set a key of it, such as {key}.{next(iter(before))}, or {key}=None.",
        )  # fmt: skip
    return None


def _check_number(section: str, name: str, held: Sequence[Any]) -> tuple[str, str] | None:
    if isinstance(held, tuple):
        return f"{section} is a tuple.", f"Replace it whole: {section}={_text(held)}"
    if not name.isdecimal() or int(name) >= len(held):
        numbers = listed([f"{section}.{number}" for number in range(len(held))])
        return f"{section}.{name} does not exist, because {section} is a list of {len(held)}.", (
            f"Write {numbers}." if held else f"Replace it whole: {section}=[…]"
        )
    return None


def _check_top_level(key: str, shipped: Config) -> Finding:
    name, _, rest = key.partition(".")
    known = top_level_names() - {name}
    if name in shipped:
        holders = [path for path, _ in _holders(shipped, name)]
        problem = (
            f"{key} is a variable of the config file that is resolved when the file is read, so "
            "the option changes nothing."
        )
        end = f".{rest}" if rest else ""
        fix = (
            f"Set the keys that hold its value: {listed([h + end for h in holders], 6)}."
            if holders
            else "Change it in the config file."
        )
        return Finding(key, problem, fix)
    close = nearest(name, known)
    nested = [path for path, _ in _flat(shipped) if path.rpartition(".")[2] == name]
    if close is not None and not nested:
        fix = f"Did you mean {close}{'.' + rest if rest else ''}? Correct the name."
    elif nested:
        fix = f"Write it as {listed(nested, 3)}."
    else:
        fix = "Remove it, or write the whole key."
    return Finding(key, f"{key}: no {name} is read at the top level of a config.", fix)


def _holders(cfg: Config, helper: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys below known ones that hold the value of a variable of the config file."""
    wanted = cfg[helper]
    known = top_level_names()
    is_word = isinstance(wanted, str) and len(wanted) > 1
    telling = is_word or isinstance(wanted, (Mapping, list, tuple))
    skipped: tuple[str, ...] = ()
    for path, value in _flat(cfg):
        if path.partition(".")[0] not in known or (skipped and path.startswith(skipped)):
            continue
        same_name = path.rpartition(".")[2] == helper
        if value == wanted and type(value) is type(wanted) and (telling or same_name):
            skipped += (path + ".",)
            yield path, value
        elif is_word and isinstance(value, str) and value.startswith(wanted + "/"):
            yield path, value


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a nested config by its dotted key, containers before their content."""
    if path:
        yield path, value
    if isinstance(value, (Mapping, Config)):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for name, inner in items:
        yield from _flat(inner, f"{path}.{name}" if path else str(name))


def _check_name(
    key: str, section: str, name: str, before: Mapping[str, Any], after: Any
) -> Finding | None:
    """Check a name that its section does not have yet."""
    if any(fnmatchcase(section, free) for free in FREE):
        return None
    kind = after.get("type") if isinstance(after, (Mapping, Config)) else None
    kind = kind or _default_type(section, after)
    allowed = set(before) | _matching(SECTIONS, section) | _matching(TAKEN, section)
    owner, opaque = section, not any(fnmatchcase(section, closed) for closed in CLOSED)
    if section == "default_hooks":
        allowed |= DEFAULT_HOOKS
        is_hook = isinstance(after, Mapping) and "type" in (after.get(name) or {})
        if is_hook:
            return None
        opaque = False
    elif kind is not None:
        owner = getattr(kind, "__name__", str(kind))
        taken, opaque = _arguments(kind, section, after)
        allowed |= taken
    if name in allowed:
        return None
    close = nearest(name, allowed, 0.9 if opaque else 0.75)
    if opaque and close is None:
        return Finding(
            key, f"{key}: it is not known whether {owner} reads {name}.",
            "Check that the option has the effect that you want.", "warning",
        )  # fmt: skip
    fix = f"Choose one of {listed(sorted(allowed - TAKEN['*'] - GIVEN), 12)}."
    if close is not None:
        fix = f"Did you mean {key[: len(section) + 1]}{close}? Correct the name."
    return Finding(key, f"{key} changes nothing: {owner} has no {name}.", fix)


def _arguments(kind: Any, section: str, cfg: Any) -> tuple[set[str], bool]:
    """Return the arguments that a type takes in a section, and whether it may take others."""
    found = find_types(kind, section, cfg)
    taken = [parameters(one) for one in found]
    opaque = not found or any(others for _, others in taken)
    opaque = opaque or any(fnmatchcase(section, layer) for layer in LAYERS)
    return set().union(*(names for names, _ in taken)), opaque


def leave_out_former_arguments(cfg: Config, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Remove the arguments of a type that an option replaces, where the new type lacks them.

    This applies to data sets and transforms, whose arguments describe the former data. In other
    sections, such as an optimizer, arguments are decisions, and building the new type refuses them.

    Args:
        cfg: The config as its file states it, changed in place.
        options: Values by dotted key.

    Yields:
        A warning for each section, which names the removed arguments.
    """
    for key, kind in options.items():
        section, _, name = key.rpartition(".")
        held = value_at(cfg, section) if section else None
        if name != "type" or not isinstance(held, dict) or held.get("type", kind) == kind:
            continue
        if not fnmatchcase(section, "*_dataloader.*"):
            continue
        names, opaque = _arguments(kind, section, held)
        if opaque:
            continue
        start = f"{section}."
        given = {o[len(start) :].partition(".")[0] for o in options if o.startswith(start)}
        kept = names | given | _matching(TAKEN, section) | _matching(SECTIONS, section)
        if left := {name: held.pop(name) for name in [*held] if name not in kept}:
            words = listed([f"{name}={value!r}" for name, value in left.items()])
            yield Finding(
                key,
                f"{section} loses the arguments of its type in the config file, {held['type']}, "
                f"that {kind} does not take: {words}.", "", "warning",
            )  # fmt: skip


def _default_type(section: str, after: Any) -> Any:
    if section in DEFAULT_TYPES:
        return DEFAULT_TYPES[section]
    if section == "train_cfg" and isinstance(after, Mapping):
        return "EpochBasedTrainLoop" if after.get("by_epoch", True) else "IterBasedTrainLoop"
    return None


def _matching(table: Mapping[str, set[str]], section: str) -> set[str]:
    return set().union(*(names for key, names in table.items() if fnmatchcase(section, key)))


def check_types(cfg: Config) -> Iterator[Finding]:
    """Find unknown types, which MMEngine's error would not name."""
    import mmengine.dataset
    import mmengine.optim  # noqa: F401  (registers the optimizers)

    loaders = [f"{part}_dataloader.collate_fn" for part in ("train", "val", "test")]
    for section in ["optim_wrapper.optimizer", *loaders]:
        held = value_at(cfg, section)
        kind = held.get("type") if isinstance(held, Mapping) else None
        scope = cfg.get("default_scope")
        if not isinstance(kind, str) or find_types(kind, section, dict(_scope_=scope)):
            continue
        name = "OPTIMIZERS" if section.startswith("optim") else "FUNCTIONS"
        close = nearest_type(kind, getattr(registries, name), scope)
        yield Finding(
            f"{section}.type",
            f"{section}.type={kind!r} is not known.",
            f"Did you mean {close}? Correct the name." if close else "Correct the name.",
        )


def nearest_type(kind: str, registry: Any, scope: str | None = None) -> str | None:
    """Return the registered type whose spelling is nearest to ``kind``, with its scope."""
    given, _, short = kind.rpartition(".")
    child = registry.root._search_child(given or scope) if given or scope else registry
    known: dict[str, str] = {}
    while child is not None:
        known.update({name.lower(): name for name in child.module_dict})
        child = child.parent if not given else None
    close = nearest(short.lower(), known, 0.6)
    return None if close is None else ".".join(filter(None, (given, known[close])))


def find_types(kind: Any, section: str, cfg: Any = None) -> list[Any]:
    """Return the classes and functions that a type's name may stand for in a section.

    Args:
        kind: The value of ``type``.
        section: Dotted key of the dict that holds it.
        cfg: The dict itself, whose ``_scope_`` is used.
    """
    if not isinstance(kind, str):
        return [kind]
    first = section.partition(".")[0]
    names = REGISTRIES.get(first, DATA_REGISTRIES)
    scope = cfg.get("_scope_") if isinstance(cfg, (Mapping, Config)) else None
    current = DefaultScope.get_current_instance()
    scope = scope or (current.scope_name if current else None)
    given, _, short = kind.rpartition(".")
    found = []
    for name in names:
        one = _registered(getattr(registries, name), given or scope, short)
        if one is not None and one not in found:
            found.append(one)
    return found


def _registered(root: Any, scope: str | None, name: str) -> Any:
    """Return the entry of a library's registry or of MMEngine's registry, without a warning."""
    if scope:
        with contextlib.suppress(ImportError):
            import_module(f"{scope}.registry")
    child = root._search_child(scope) if scope else None
    return (root if child is None else child).get(name)


def parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """Return the argument names of a class or function, and whether it may take others.

    The ``**kwargs`` of a class are followed along its bases as far as they are passed on. A class
    that checks its ``**kwargs`` itself lists their names in ``keyword_names``.
    """
    names = set(getattr(function, "keyword_names", ()))
    is_checked = bool(names)
    layers: list[Any] = [function]
    if inspect.isclass(function):
        layers = [
            base.__dict__["__init__"]
            for base in function.__mro__
            if "__init__" in base.__dict__ and base is not object
        ]
    for layer in layers:
        try:
            taken = inspect.signature(layer).parameters.values()
        except (TypeError, ValueError):  # Builtins have no signature.
            return names, True
        names |= {p.name for p in taken if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        others = [p.name for p in taken if p.kind is p.VAR_KEYWORD]
        if not others or is_checked:
            return names, False
        if not _passes_on(layer, others[0]):
            return names, True
    return names, bool(layers)


def _passes_on(function: Any, keywords: str) -> bool:
    """Return whether an ``__init__`` passes its ``**kwargs`` to the ``__init__`` of its base."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return False
    call = r"super\([^)]*\)\.__init__\((?:[^()]|\([^()]*\))*\*\*" + re.escape(keywords)
    return re.search(call, source) is not None


def _text(value: Any) -> str:
    return str(value).replace(" ", "").replace("'", "")
