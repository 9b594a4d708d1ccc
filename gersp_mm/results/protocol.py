"""The protocols that values are measured by: one class for each, with its fields and its words."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from gersp_mm.checkpoints.read import UNREAD, config_values
from gersp_mm.constants import FEW_SHOT_DRAWS, KNN_K, KNN_TEMPERATURE
from gersp_mm.utils.errors import counted
from gersp_mm.utils.validation import validated

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Frozen = Literal["none", "stem", "stem_and_stage1", "stem_to_stage2", "stem_to_stage3", "all"]
# The hosts' `frozen_stages`; a backbone without this argument has no frozen layer.
FROZEN: dict[Any, str] = {
    -1: "none",
    0: "stem",
    1: "stem_and_stage1",
    2: "stem_to_stage2",
    3: "stem_to_stage3",
    4: "all",
}
BACKBONE_FROZEN = "model.backbone.frozen_stages"


class Typed(BaseModel):
    """Plain data with fixed fields; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageInput(Typed):
    """The size at which the network sees an image.

    Attributes:
        size: Side of the square crop in pixels.
        resize: Length in pixels to which the shorter side is resized first; None for the crop's
            size.
    """

    size: Count
    resize: Count | None = None

    def __str__(self) -> str:
        """Return the size as it stands in sentences."""
        resized = f", resized to {self.resize} px first" if self.resize else ""
        return f"{self.size} px{resized}"


class Protocol(Typed):
    """Base of all protocols.

    Attributes:
        reads: Patterns of the dotted config keys whose values the fields hold. If another option of
            the config is changed, the row holds the change as an override.
        word: The protocol in a word for the head of a table; empty if the metric implies it.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    word: ClassVar[str] = ""

    @property
    @abc.abstractmethod
    def sentence(self) -> str:
        """The protocol in a sentence for people."""

    @property
    def short(self) -> str:
        """The word, with numbers that it depends on."""
        return self.word

    @classmethod
    def of(
        cls,
        cfg: Mapping[str, Any],
        checkpoint_meta: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> AnyProtocol:
        """Fill the fields from a config as it runs and from the checkpoint that it tests.

        Args:
            cfg: The config with all overrides. Its ``evaluation.measured_by`` holds the kind and
                the fields that cannot be read from the run. The sentence in an
                ``evaluation.protocol`` takes precedence and gives :class:`Unparsed`.
            checkpoint_meta: ``meta`` of the checkpoint. It holds the config of the training, which
                decides on epochs, iterations and frozen layers.
            **fields: Further fields, which hold for one of several metrics.

        Raises:
            UserError: A field is missing, unknown or of another type.
        """
        evaluation = cfg.get("evaluation") or {}
        if evaluation.get("protocol"):
            return Unparsed(kind="unparsed", text=evaluation["protocol"])
        trained = config_values((checkpoint_meta or {}).get("cfg"))
        known = "train_cfg" in trained and "model" in trained
        given = {**(evaluation.get("measured_by") or {}), **fields}
        kind = KINDS.get(given.get("kind"), Unparsed)
        found = kind._fields_of_run(cfg, trained if known else cfg)
        values = {k: v for k, v in found.items() if k in kind.model_fields and v is not UNREAD}
        where = "evaluation.measured_by, filled from the config as it runs"
        return validated(AnyProtocol, {**values, **given}, where)

    @classmethod
    def _fields_of_run(
        cls, tested: Mapping[str, Any], trained: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return fields from the configs of test and training; each protocol takes its own."""
        train_cfg = trained.get("train_cfg") or {}
        backbone = (trained.get("model") or {}).get("backbone") or {}
        frozen = FROZEN.get(backbone.get("frozen_stages", -1), UNREAD)
        found = dict(epochs=train_cfg.get("max_epochs"), iterations=train_cfg.get("max_iters"))
        return {**{k: v for k, v in found.items() if v is not None}, "frozen": frozen}

    def overrides_of(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changed options that no field of the protocol holds.

        Args:
            changes: Values by dotted key.
        """
        return {
            key: value
            for key, value in changes.items()
            if not any(fnmatchcase(key, pattern) for pattern in self.reads)
        }


class FrozenKNN(Protocol):
    """Weighted k nearest neighbours on frozen features."""

    reads = ("test_cfg.knn.*",)
    word = "kNN"
    kind: Literal["knn"] = "knn"
    image: ImageInput
    k: Count
    temperature: Positive

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        vote = f"k = {self.k}, T = {self.temperature:g}"
        return f"Frozen features, weighted kNN ({vote}), {self.image}"

    @classmethod
    def _fields_of_run(
        cls, tested: Mapping[str, Any], trained: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "k": KNN_K,
            "temperature": KNN_TEMPERATURE,
            **((tested.get("test_cfg") or {}).get("knn") or {}),
        }


class FrozenLinear(Protocol):
    """A linear classifier on frozen features.

    Attributes:
        solver: ``lbfgs`` fits a logistic regression to stored features, ``sgd`` trains a layer.
        sweep: Values of C that were tried (``lbfgs``).
        chosen_on: Images on which C was chosen: the validation list, or a fifth of the training
            images.
        epochs: Length of the training (``sgd``).
    """

    reads = ("train_cfg.max_epochs",)
    word = "linear"
    kind: Literal["linear"] = "linear"
    image: ImageInput
    solver: Literal["lbfgs", "sgd"]
    sweep: list[Positive] = []
    chosen_on: Literal["val", "train_fifth"] | None = None
    epochs: Count | None = None

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        if self.solver == "sgd":
            epochs = counted(self.epochs or 0, "epoch")
            return f"Frozen features, linear layer by SGD, {epochs}, {self.image}"
        values = ", ".join(f"{c:g}" for c in self.sweep)
        chosen = {"val": " by the validation list", "train_fifth": " by a fifth of train", None: ""}
        how = f"logistic regression, C of {values}{chosen[self.chosen_on]}"
        return f"Frozen features, {how}, {self.image}"


class FewShot(Protocol):
    """Logistic regression on frozen features of a few images per class.

    Attributes:
        shots: Training images per class.
        draws: Random choices of these images; values are means over the draws.
    """

    reads = ("test_cfg.fewshot.*",)
    kind: Literal["fewshot"] = "fewshot"
    image: ImageInput
    shots: Count
    draws: Count

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        images = f"{counted(self.shots, 'image')} per class"
        how = f"logistic regression on {images} (mean of {self.draws} draws)"
        return f"Frozen features, {how}, {self.image}"

    @property
    def short(self) -> str:
        """The protocol in a word."""
        return f"{self.shots}-shot"

    @classmethod
    def _fields_of_run(
        cls, tested: Mapping[str, Any], trained: Mapping[str, Any]
    ) -> dict[str, Any]:
        few_shot = (tested.get("test_cfg") or {}).get("fewshot") or {}
        return dict(draws=few_shot.get("draws", FEW_SHOT_DRAWS))


class FineTuning(Protocol):
    """A classifier whose layers are all trained, except the frozen ones."""

    reads = ("train_cfg.max_epochs", BACKBONE_FROZEN)
    word = "fine-tuned"
    kind: Literal["finetune"] = "finetune"
    image: ImageInput
    epochs: Count
    frozen: Frozen
    images_per_class: Count | None = None

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        few = f", {self.images_per_class} images per class" if self.images_per_class else ""
        epochs = counted(self.epochs, "epoch")
        return f"Fine-tuning{few}, {epochs}, {self.image}{_frozen(self.frozen)}"


class Detection(Protocol):
    """A detector of horizontal or oriented boxes.

    Attributes:
        recipe: ``released`` by the paper's code, ``field`` for the usual one, ``demo`` for the
            quickstart's.
        tile: Side in pixels of the tiles into which scenes were cut; None for whole images.
        merged: Whether the boxes of the tiles were merged into scenes before the evaluation.
    """

    reads = ("train_cfg.max_epochs", BACKBONE_FROZEN)
    kind: Literal["detection"] = "detection"
    boxes: Literal["horizontal", "oriented"]
    recipe: Literal["released", "field", "demo"]
    tile: Count | None = None
    merged: bool = False
    epochs: Count
    frozen: Frozen

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        recipe = {"released": "released", "field": "field's", "demo": "demo's"}[self.recipe]
        merged = "merged" if self.merged else "not merged"
        tiles = f" ({self.tile} px tiles, {merged})" if self.tile else ""
        boxes = f"{self.boxes.capitalize()} boxes, {recipe} protocol{tiles}"
        return f"{boxes}, {counted(self.epochs, 'epoch')}{_frozen(self.frozen)}"


class Segmentation(Protocol):
    """A segmenter.

    Attributes:
        crop: Side of the training crops in pixels.
    """

    reads = ("train_cfg.max_iters", BACKBONE_FROZEN)
    kind: Literal["segmentation"] = "segmentation"
    crop: Count
    iterations: Count
    frozen: Frozen

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        crops = f"{self.crop} px crops"
        return f"Segmentation, {self.iterations:,} iterations, {crops}{_frozen(self.frozen)}"


class TrainingLog(Protocol):
    """Values of a training's log, which are not in per cent.

    Attributes:
        window: The part of the training over which values are averaged.
    """

    kind: Literal["training_log"] = "training_log"
    window: str

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        return f"Training log, mean over {self.window}"

    @property
    def short(self) -> str:
        """The protocol in a word."""
        return f"log ({self.window})"


class Unparsed(Protocol):
    """A sentence of a user or of an older version, which can be shown but not compared."""

    kind: Literal["unparsed"] = "unparsed"
    text: str

    @property
    def sentence(self) -> str:
        """The protocol in a sentence."""
        return self.text


def _frozen(layers: str) -> str:
    return "" if layers == "none" else f", frozen: {layers.replace('_', ' ')}"


AnyProtocol = Annotated[
    FrozenKNN
    | FrozenLinear
    | FewShot
    | FineTuning
    | Detection
    | Segmentation
    | TrainingLog
    | Unparsed,
    Field(discriminator="kind"),
]
KINDS: dict[Any, type[Protocol]] = {
    kind.model_fields["kind"].default: kind for kind in Protocol.__subclasses__()
}
