"""The transforms of one view: the kind of image that each gets, and its random numbers."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmpretrain.registry import TRANSFORMS as HOST_TRANSFORMS
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from gersp_mm.images.decode import BadImageError, unlimited_image_size
from gersp_mm.utils.errors import UserError

HOSTS = ("mmcv", "mmpretrain", "mmdet", "mmseg", "mmrotate")  # their transforms take arrays
LOADS = "the images are decoded already. Remove it."
PACKS = "the dataset packs the views itself. Remove it."
REPEATS = "rs_pipeline runs twice on every image, once for each view. List them once."
# Transforms that are not allowed in a view's pipeline, by the start and the end of their names.
MISPLACED = (
    ("Load", "", ("Image", "Patch", "Annotations"), LOADS),
    ("InferencerLoader", "", (), LOADS),
    ("Pack", "Inputs", (), PACKS),
    ("Collect", "Collect", (), PACKS),
    ("MultiView", "MultiView", (), REPEATS),
    ("TestTimeAug", "TestTimeAug", (), REPEATS),
)
# Transforms that take an array as well as an image, or functions of the user's own.
TAKE_ANYTHING = ("PILToNumpy", "ToPILImage", "ToTensor", "ToImage", "Lambda")
TAKE_TENSORS = ("RandomErasing", "ConvertImageDtype")  # torchvision's
LEAVES = (str, bytes, int, float, complex, type(None), type, ModuleType, np.ndarray, torch.Tensor)


class Pipeline(Compose):
    """Transforms that turn a decoded image into one view.

    Args:
        name: ``'rs_pipeline'`` or ``'natural_pipeline'``, for messages.
        cfgs: Transforms or their configs. The first gets ``img`` as a PIL RGB image. Transforms of
            mmcv and its hosts get an H×W×3 uint8 RGB array, torchvision's get a PIL image in place
            of an array, and all others get the result of the previous transform.

    Raises:
        UserError: A transform loads images, packs them or makes several views.
    """

    def __init__(self, name: str, cfgs: Sequence[Any]) -> None:
        self.name = name
        for number, cfg in enumerate(cfgs):
            _refuse_misplaced(f"dataset.{name}.{number}", cfg)
        with DefaultScope.overwrite_default_scope("mmpretrain"):  # for inner transforms
            built = [HOST_TRANSFORMS.build(c) if isinstance(c, dict) else c for c in cfgs]
        super().__init__(built)
        for transform in self.transforms:
            _convert_inside(transform)
        self.generators = list(generators(self.transforms))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "generators"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.generators = list(generators(self.transforms))  # generators of this process

    def seed_generators(self) -> None:
        """Seed the transforms' own random generators from Python's random state."""
        for seed in self.generators:
            seed(random.getrandbits(32))

    def view(self, results: dict[str, Any], steps: int | None = None) -> dict[str, Any]:
        """Return ``results`` with ``img``, a 3×H×W uint8 RGB tensor.

        Args:
            results: ``img``, a 3×H×W uint8 RGB tensor, which is not changed.
            steps: Number of transforms to run; None runs all and checks their result.

        Raises:
            UserError: A transform fails, or the result has another form.
        """
        first = self.transforms[0] if self.transforms else None
        if getattr(first, "takes_tensor", False):
            results = self._run(results, steps)
        else:
            with unlimited_image_size():
                results = self._run({**results, "img": to_pil_image(results["img"])}, steps)
        if steps is not None:
            return results
        view = results["img"]
        if isinstance(view, np.ndarray):
            view = torch.from_numpy(np.ascontiguousarray(np.moveaxis(view, -1, 0)))
        elif isinstance(view, Image.Image):
            view = pil_to_tensor(view)
        elif not isinstance(view, torch.Tensor):
            raise UserError(
                f"{self.place(len(self.transforms) - 1)} leaves img as a {type(view).__name__}. "
                "End the pipeline with one PIL image, array or tensor."
            )
        if view.dtype != torch.uint8 or view.ndim != 3 or view.shape[0] != 3:
            raise UserError(
                f"dataset.{self.name} gives {view.dtype} values of shape {tuple(view.shape)}. End "
                "it with a PIL RGB image, an H×W×3 uint8 array or a 3×H×W uint8 tensor, and leave "
                "scaling and normalisation to the data preprocessor."
            )
        if type(view) is not torch.Tensor:  # a tensor type of torchvision
            view = view.as_subclass(torch.Tensor)
        return {**results, "img": view}

    def place(self, number: int) -> str:
        """Return the key and the name of a transform."""
        return f"dataset.{self.name}.{number} ({_name(self.transforms[number])})"

    def _run(self, results: dict[str, Any], steps: int | None) -> dict[str, Any]:
        for number, transform in enumerate(self.transforms[:steps]):
            if number or not getattr(transform, "takes_tensor", False):
                results = _converted(transform, results)
            image = results.get("img")
            try:
                results = transform(results)
            except (UserError, BadImageError):
                raise
            except Exception as error:
                text = str(error).strip().partition("\n")[0].rstrip(".")
                raise UserError(
                    f"{self.place(number)} fails on {_kind(image)}: {type(error).__name__}: "
                    f"{text}. Put a transform before it that gives the right kind (PILToNumpy, "
                    "torchvision/ToPILImage, torchvision/PILToTensor), or remove it."
                ) from error
            if not isinstance(results, Mapping) or "img" not in results:
                what = "no img" if isinstance(results, Mapping) else f"{type(results).__name__}"
                raise UserError(
                    f"{self.place(number)} leaves {what} in place of the results of one image. "
                    "Remove it, or have it return its results with img."
                )
        return results


class _Converting:
    """A transform inside another transform, which gets the kind of image that it needs."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, results: dict[str, Any]) -> Any:
        return self.transform(_converted(self.transform, results))

    def __repr__(self) -> str:
        return repr(self.transform)


def _refuse_misplaced(place: str, cfg: Any) -> None:
    kind = cfg.get("type") if isinstance(cfg, Mapping) else type(cfg)
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    name = name.rpartition(".")[2].rpartition("/")[2]
    for start, end, parts, reason in MISPLACED:
        found = not parts or any(part in name for part in parts)
        if found and name.startswith(start) and name.endswith(end):
            raise UserError(f"{place} is {name}, but {reason}")
    if isinstance(cfg, Mapping):
        for number, inner in enumerate(_listed(cfg.get("transforms"))):
            _refuse_misplaced(f"{place}.transforms.{number}", inner)


def _listed(value: Any) -> list[Any]:
    """Return the configs of transforms in a list, or in a list of lists."""
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in _listed(part)]
    return [value] if isinstance(value, Mapping) and "type" in value else []


def _name(transform: Any) -> str:
    inner = getattr(transform, "t", None)  # inside mmpretrain's wrapper of a torchvision transform
    if type(transform).__name__ == "TorchVisonTransformWrapper":
        return f"torchvision/{type(inner).__name__}"
    return getattr(transform, "__name__", type(transform).__name__)


def _convert_inside(transform: Any) -> None:
    """Convert images for the transforms inside mmcv's RandomApply, RandomChoice and the like."""
    for part in _compositions(transform):
        part.transforms = [
            inner if _compositions(inner) else _Converting(inner) for inner in part.transforms
        ]
        for inner in part.transforms:
            _convert_inside(inner)


def _compositions(transform: Any) -> list[Any]:
    """Return the compositions of transforms that a transform of mmcv or MMEngine runs."""
    inner = getattr(transform, "transforms", None)
    if type(transform).__module__.split(".")[0] in ("mmcv", "mmengine"):
        if isinstance(inner, list) and type(transform).__name__ == "Compose":
            return [transform]
        parts = inner if isinstance(inner, list) else [inner]
        return [part for part in parts if type(part).__name__ == "Compose"]
    return []


def _converted(transform: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Return results with the kind of image that a transform needs."""
    wanted, image = _takes(transform), results.get("img")
    if wanted is None or image is None:
        return results
    if wanted is np.ndarray and not isinstance(image, np.ndarray):
        pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
        array = np.array(pixels)  # Transforms may change the array.
        shape = array.shape[:2]
        return {**results, "img": array, "img_shape": shape}
    if wanted is not np.ndarray and isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = to_pil_image(image)
    if wanted is torch.Tensor and isinstance(image, Image.Image):
        image = pil_to_tensor(image)
    return {**results, "img": image}


def _takes(transform: Any) -> type | None:
    """Return the kind of image that a transform needs; None if it takes any kind."""
    if getattr(transform, "takes_tensor", False):
        return Image.Image  # or a tensor
    if _compositions(transform):
        return None
    if type(transform).__name__ == "TorchVisonTransformWrapper":
        name = type(transform.t).__name__
        if name in TAKE_TENSORS:
            return torch.Tensor
        return None if name in TAKE_ANYTHING else Image.Image
    if not isinstance(transform, BaseTransform) or type(transform).__name__ in TAKE_ANYTHING:
        return None
    # The class that defines `transform` decides the kind, not a subclass in another library.
    author = type(transform).transform.__module__.split(".")[0]
    return np.ndarray if author in HOSTS else None


def _kind(image: Any) -> str:
    if isinstance(image, Image.Image):
        return f"a PIL {image.mode} image"
    if isinstance(image, np.ndarray):
        return f"a {image.dtype} array of shape {image.shape}"
    if isinstance(image, torch.Tensor):
        return f"a {image.dtype} tensor of shape {tuple(image.shape)}"
    return f"a {type(image).__name__}"


def generators(root: Any) -> Iterator[Callable[[int], Any]]:
    """Yield a seeding function for each random generator within transforms."""
    waiting, seen = [root], [root]  # Objects are kept so that no id is used twice.
    known = {id(root)}
    while waiting:
        part = waiting.pop()
        seed = _seeding(part)
        if seed is not None:
            yield seed
            continue
        for inner in _parts(part):
            if not isinstance(inner, LEAVES) and id(inner) not in known:
                known.add(id(inner))
                seen.append(inner)
                waiting.append(inner)


def _parts(part: Any) -> list[Any]:
    if isinstance(part, Mapping):
        return list(part.values())
    if isinstance(part, (list, tuple, set, frozenset)):
        return list(part)
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, MethodType):
        return [part.__self__]
    if isinstance(part, FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or () if _is_filled(cell)]
        return [*cells, *(part.__defaults__ or ())]
    return list(getattr(part, "__dict__", {}).values())


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _seeding(part: Any) -> Callable[[int], Any] | None:
    """Return a function that seeds an object, or None if it holds no random state itself."""
    if isinstance(part, np.random.Generator):
        return functools.partial(_seed_bits, part.bit_generator)
    if isinstance(part, (np.random.RandomState, random.Random)):
        return part.seed
    if isinstance(part, torch.Generator):
        return part.manual_seed
    state = getattr(part, "set_random_state", None)
    if callable(state) and {"random_generator", "py_random"} <= _arguments(state):
        # Albumentations' set_random_seed gives all transforms of a Compose the same numbers, so
        # that two flips always occur together.
        return functools.partial(_seed_state, state)
    seed = getattr(part, "set_random_seed", None)
    return seed if callable(seed) else None


def _arguments(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _seed_bits(bits: Any, seed: int) -> None:
    bits.state = type(bits)(seed).state


def _seed_state(set_random_state: Callable[..., Any], seed: int) -> None:
    set_random_state(np.random.default_rng(seed), random.Random(seed))
