"""The check that a module and a file agree, for every way of loading weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.backbones.resized import is_resized
from gersp_mm.checkpoints.compare import COUNTER, StateDifference, compare, not_finite
from gersp_mm.checkpoints.read import config_values, require_finite
from gersp_mm.constants import PREFIX
from gersp_mm.utils.errors import UserError

TOLERANCE = 1e-2  # largest difference of mean and std, because configs round them
SAMPLE = 20  # number of names in which a prefix is searched

State = Mapping[str, torch.Tensor]


def require_same_tensors(
    title: str,
    path: str,
    own: State,
    given: State,
    *,
    values: bool = False,
    extra: bool = True,
    advice: str | None = None,
) -> None:
    """Refuse a file that does not hold exactly the tensors of a module.

    Args:
        title: Name of the module in messages, such as ``model.backbone``.
        path: Path of the file.
        own: State dict of the module.
        given: Tensors of the file by the module's names.
        values: Whether the values of the module have to equal those of the file.
        extra: Whether tensors that the module lacks are an error.
        advice: Sentences with the reason and the fix; by default the likely ones.

    Raises:
        UserError: The tensors differ, or one holds NaN or infinity.
    """
    _require_finite(path, own, given)
    found = compare(given, own, values=values)
    if not extra:
        found = StateDifference(found.missing, (), found.reshaped, {}, found.changed)
    if found:
        verb = "was not" if values else "cannot be"
        advice = advice or likely_reason(own, given)
        raise UserError(f"{title} {verb} loaded from {path}: {found}. {advice}")


def below(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {n[len(prefix) :]: tensor for n, tensor in state.items() if n.startswith(prefix)}


def without_module(state: State) -> dict[str, torch.Tensor]:
    """Return the tensors without the ``module.`` of DistributedDataParallel, as MMEngine does."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def in_head(name: str) -> bool:
    """Return whether a tensor belongs to a head, which depends on the classes."""
    return any(part.endswith("head") for part in name.split("."))


def require_whole_model(path: str, own: State, given: State, config: str) -> None:
    """Refuse a file that does not hold exactly the tensors of a whole model.

    Args:
        path: Path of the file.
        own: State dict of the model.
        given: Tensors of the file, without ``module.``.
        config: Config of the model, for the message.

    Raises:
        UserError: The tensors differ, or one holds NaN or infinity. The message gives the likely
            reason.
    """
    _require_finite(path, own, given)
    if found := compare(given, own):
        if given and all(name.startswith(PREFIX) for name in given):
            advice = "This is a backbone file. Start a training from it with gersp train."
        else:
            advice = _prefix_advice(own, given, "MMEngine") or (
                "It belongs to another config: use the one that its training wrote into its work "
                "directory."
            )
        raise UserError(
            f"{path} does not fit the model of {config}: {found} ({len(own)} tensors in all). "
            f"{advice}"
        )


def require_loadable_model(
    path: str, own: State, given: State, part: str = "backbone"
) -> list[str]:
    """Refuse a file for ``load_from`` that lacks weights of a model outside its heads.

    Args:
        path: Path of the file.
        own: State dict of the model.
        given: Tensors of the file, without ``module.``.
        part: The part of the model whose tensors have to equal those of the file by name and shape.

    Returns:
        Phrases on the tensors of heads that keep their initial values, because the file lacks them
        or holds another shape.

    Raises:
        UserError: Another tensor is missing or of another shape, ``part`` has more tensors in the
            file, or a tensor holds NaN or infinity.
    """
    _require_finite(path, own, given)
    found = compare(given, own)
    start = f"{part}."
    severe = StateDifference(
        tuple(name for name in found.missing if not in_head(name)),
        tuple(name for name in found.unexpected if name.startswith(start)),
        {name: shapes for name, shapes in found.reshaped.items() if not in_head(name)},
    )
    if severe:
        names = (*severe.missing, *severe.unexpected, *severe.reshaped)
        inner, theirs = below(own, start), below(given, start)
        if inner and not any(name.startswith(start) for name in names):
            advice = f"To start from its {part} alone, use pretrained={path} without load_from."
        elif inner and theirs:
            advice = likely_reason(inner, theirs)
        elif inner and _prefix_in(inner, list(given)) == "":
            advice = (
                f"It holds a {part} without prefix: use pretrained={path} instead of load_from, "
                f"with model.{part}.init_cfg.prefix=None."
            )
        else:
            reason = likely_reason(inner, given, start)
            if "init_cfg" in reason:
                reason = f"To start from its {part} alone, use pretrained={path} without load_from."
            advice = _prefix_advice(own, given, "load_from") or reason
        raise UserError(f"load_from={path} does not fit the model: {severe}. {advice}")
    return StateDifference(found.missing, (), found.reshaped).sentences(most=10)


def _require_finite(path: str, own: State, given: State) -> None:
    """Refuse NaN and infinity in loaded tensors, except where the module starts with them."""
    used = {name: tensor for name, tensor in given.items() if name in own}
    bad = not_finite(used)
    if bad:
        odd = not_finite({name: own[name] for name in bad})
        require_finite(path, {name: used[name] for name in bad if name not in odd})


def _prefix_advice(own: State, given: State, reader: str) -> str | None:
    start = _prefix_in(own, list(given))
    if not start:
        return None
    return (
        f"Its names start with {start!r}, which {reader} does not remove: save its state dict "
        "without the prefix."
    )


def require_same_input(path: str, meta: Any, preprocessor: Any, part: Any = None) -> None:
    """Refuse a model that prepares its images in another way than the file's network.

    Args:
        path: Path of the file.
        meta: ``meta`` of the file; facts that it lacks are not compared.
        preprocessor: The model's data preprocessor.
        part: The backbone, whose style is compared, or None.

    Raises:
        UserError: Mean, std, channel order or the style (the place of the strides) differ.
    """
    if not isinstance(meta, Mapping):
        return
    expected, found = Normalisation.stored(meta), Normalisation.of(preprocessor)
    style = _stored_style(meta)
    if part is not None and style and getattr(part, "style", style) != style:
        raise UserError(
            f"the backbone has style={part.style!r}, which places its strides elsewhere than "
            f"{path} does, although the tensors fit: set style={style!r}"
        )
    if expected is None:
        return
    if found is None:
        raise UserError(
            f"{path} was trained with mean={list(expected.mean)} and std={list(expected.std)}, but "
            "model.data_preprocessor does not normalise: give it mean and std"
        )
    for name in ("mean", "std"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if len(ours) != len(theirs) or not all(
            math.isclose(a, b, rel_tol=1e-5, abs_tol=TOLERANCE) for a, b in zip(ours, theirs)
        ):
            raise UserError(
                f"{path} was trained with {name}={list(theirs)} ({expected.channel_order}), but "
                f"model.data_preprocessor has {list(ours)}: set it to the values of the checkpoint"
            )
    if found.channel_order != expected.channel_order:
        raise UserError(
            f"{path} was trained on {expected.channel_order} images, but model.data_preprocessor "
            f"gives {found.channel_order}: set its bgr_to_rgb (to_rgb in mmpretrain)"
        )


def _stored_style(meta: Mapping[str, Any]) -> str | None:
    backbone = meta.get("backbone")
    if backbone is None:
        model = config_values(meta.get("cfg") or meta.get("config_text")).get("model")
        backbone = model.get("backbone") if isinstance(model, Mapping) else None
    if isinstance(backbone, Mapping) and str(backbone.get("type")).endswith("ResNet"):
        return backbone.get("style") or "pytorch"
    return "pytorch" if "weights_sha256" in meta else None  # an exported or converted backbone


def likely_reason(own: State, stored: State, prefix: str = "") -> str:
    """Return the likely reason why a file does not fit, and the fix, in one sentence.

    Args:
        own: State dict of the module.
        stored: Tensors of the file by its own names.
        prefix: Prefix of the module's names in the file, according to ``init_cfg``.
    """
    names = list(stored)
    given = below(stored, prefix)
    if not names:
        return "The file holds no tensors."
    if not given or not set(given) & set(own):
        start = _prefix_in(own, names)
        if start:
            return (
                f"Its names start with {start!r}: set init_cfg.prefix={start!r} (--cfg-options "
                f"model.backbone.init_cfg.prefix={start})."
            )
        if start == "":
            return (
                "Its names have no prefix: leave init_cfg.prefix out (--cfg-options "
                "model.backbone.init_cfg.prefix=None)."
            )
        if all(name.startswith(("neck.", "head.", "projector", "fc")) for name in names):
            return "It holds only a projector or a head, and no backbone."
        return f"None of its names fits; the first is {names[0]!r}."
    if any(name.startswith("stem.") for name in own) != any(n.startswith("stem.") for n in given):
        return (
            "Only one of the two has the deep stem of ResNetV1c or V1d: use type='ResNet' for the "
            "backbone."
        )
    blocks = [{n.rpartition(".conv")[0] for n in side if ".conv" in n} for side in (own, given)]
    if blocks[0] != blocks[1]:
        return "The blocks differ: set backbone.depth to that of the checkpoint."
    other = [k for k in own if k in given and own[k].shape != given[k].shape]
    if other and all(map(is_resized, other)):
        return (
            "This backbone does not resize them: give it the image and window size of the file's "
            "training, or use a backbone type that resizes them, such as mmpretrain's."
        )
    if other:
        return "The widths differ: use the architecture of the checkpoint."
    if compare(given, own):
        return "It belongs to another model: use the file that this model's training wrote."
    return "Other weights are loaded afterwards, or the model changed them at initialisation."


def _prefix_in(own: State, names: list[str]) -> str | None:
    """Return the prefix of the module's names in a file, or None if the file has none of them."""
    wanted = [name for name in own if not name.endswith(COUNTER)][:SAMPLE]
    starts = Counter(
        stored[: -len(name)]
        for name in wanted
        for stored in names
        if stored == name or stored.endswith(f".{name}")
    )
    order = sorted(starts, key=lambda start: (-starts[start], start != PREFIX, len(start)))
    return order[0] if order else None
