"""The public pre-trainings: how their files are laid out, and how each is recognised.

Everything that differs between them is data here. The formats were read from the code that writes
or loads the files; the file is named at each row, relative to the project's repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.utils.errors import UserError

if TYPE_CHECKING:
    import torch

SENTINEL_2 = (
    "Sentinel-2 bands B4, B3, B2, stretched linearly from their quantiles (0-129, 2-103, 3-88) to "
    "0-255, then mean and std"
)
# Names of a ResNet's tensors without prefix: by attribute, and (some of them) by position in
# nn.Sequential(*resnet.children()).
BY_NAME = re.compile(r"(conv|bn|norm|layer|res)\d\.|stem\.")
BY_POSITION = re.compile(r"[4-9]\.\d+\.(conv|bn)\d\.")
POSITIONS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
V1_HEAD = r"^encoder_q\.fc\.weight"


class Layout(NamedTuple):
    """How the tensors of a file are named.

    Attributes:
        name: Name of the layout, by which :class:`Source` refers to it.
        student: Prefix of the student's names.
        teachers: Prefixes that a teacher's names may have.
        by_position: Whether parts are numbered, as ``nn.Sequential`` does.
    """

    name: str
    student: str
    teachers: tuple[str, ...] = ()
    by_position: bool = False

    def holds(self, names: Iterable[str], prefix: str) -> bool:
        """Return whether a backbone's tensors are below this prefix."""
        pattern = BY_POSITION if self.by_position else BY_NAME
        return any(n.startswith(prefix) and pattern.match(n, len(prefix)) for n in names)

    def words(self) -> str:
        """Return a phrase that describes the names."""
        example = f"{self.student}{'4' if self.by_position else 'layer1'}.0.conv1.weight"
        return f"its names are like {example!r}"


# The first that fits is taken, so the special ones come first.
LAYOUTS = (
    Layout(
        "backbone",
        "backbone.",
        (
            "teacher.backbone.",  # gersp_mm.GeRSP
            "encoder_k.module.0.",  # mmpretrain: MoCo, BYOL, MoCoV3
            "target_net.module.0.",
            "momentum_encoder.module.0.",
            "encoder_k.0.",  # mmselfsup 0.x: the same
            "target_net.0.",
            "momentum_encoder.0.",
            "encoder_k.",  # the released GeRSP code
        ),
    ),
    Layout("online", "online_encoder.model.", ("branch_encoder.",)),
    Layout("query by position", "encoder_q.", ("encoder_k.",), by_position=True),
    Layout("query and neck", "encoder_q.0.", ("encoder_k.0.",)),
    Layout("query", "encoder_q.", ("encoder_k.",)),
    Layout("online network", "online_network.encoder.", ("target_network.encoder.",)),
    Layout("features", "features."),
    Layout("by position", "", by_position=True),
    Layout("bare", ""),
)


class Source(NamedTuple):
    """A pre-training whose files are in circulation.

    Attributes:
        name: The value of ``--source``.
        method: Goes into ``meta['method']``; empty where the file's config names it.
        layouts: Names of :data:`LAYOUTS` that its files have.
        sign: Pattern of a line of :func:`inventory` that only its files have.
        has: Pattern of a line that all of its files have.
        file: Pattern of its files' names, in lower case, for files whose content is ambiguous.
        mean: Mean of the input per channel, RGB, 0 to 255.
        std: Standard deviation of the input per channel, RGB, 0 to 255.
        first_epoch: Number to add to its ``epoch`` entry for the number of epochs done.
        images: How its images became RGB with values from 0 to 255, if that is unusual.
        quirk: A caveat for its users.
    """

    name: str
    method: str
    layouts: tuple[str, ...]
    sign: str = ""
    has: str = ""
    file: str = ""
    mean: tuple[float, ...] = RGB_MEAN
    std: tuple[float, ...] = RGB_STD
    first_epoch: int = 0
    images: str = ""
    quirk: str = ""


# Where several have the same evidence the first is taken.
SOURCES = (
    # mmselfsup/models/algorithms/moco_gersp.py: proj_q and pred_q; backbone is a second name of
    # encoder_q. M_Convert_Checkpoints/convert_gersp.py keeps backbone.* alone. teacher.*: our own.
    Source(
        "gersp",
        "GeRSP",
        ("backbone",),
        sign=r"^(proj_q|pred_q|teacher\.backbone)\.",
        file=r"gersp(?!.?200)|cvt_epoch_100",
    ),
    Source(
        "gersp",
        "GeRSP-200",
        ("backbone",),
        sign=r"^(proj_q|pred_q)\.",
        file=r"gersp.?200|cvt_epoch_200",
    ),
    # models/moco2_module.py: encoder_q = nn.Sequential(*children[:-1], nn.Flatten()), heads_q and
    # queue for each of three embedding spaces, in a checkpoint of Lightning 1.1.
    # datasets/seco_dataset.py: quantiles. The bare layout is that of torchgeo's copies.
    Source(
        "seco",
        "SeCo",
        ("query by position", "by position", "bare"),
        file=r"seco",
        images=SENTINEL_2,
    ),
    # The same module (src/models/moco2_module.py); the .pth is the Sequential's bare state dict
    # (notebooks/eurosat_eval_pytorch.ipynb).
    Source(
        "caco",
        "CACo",
        ("query by position", "by position", "bare"),
        file=r"caco",
        images=SENTINEL_2,
    ),
    # main_moco.py and moco/builder.py at 7397dfe: fc is one Linear in v1, an MLP in v2.
    Source("moco", "MoCo v1", ("query",), sign=V1_HEAD, has=V1_HEAD, file=r"moco_v1"),
    Source("moco", "MoCo v2", ("query",), file=r"moco_v2"),
    # moco_fmow/main_moco_geo+tp.py (geo_dict) and main_moco_tp.py, otherwise MoCo's code. With the
    # head left in backbone.fc: M_Convert_Checkpoints/convert_geo_aware.py of the GeRSP code.
    Source(
        "geo-aware",
        "Geo-Aware",
        ("query", "backbone", "bare"),
        sign=r"^/geo_dict$|^backbone\.fc\.\d",
        file=r"geo.?aware|gassl|moco_(geo|tp)",
    ),
    # TOV_v1/classification/utils/tools.py: checkpoint_standardize writes {'state_dict': bare names}
    # and load_ckpt reads them; features.* is its ClsNet. config/default/opt_*.py: mean = std = 0.5.
    Source(
        "tov",
        "TOV",
        ("bare", "features", "online network"),
        file=r"(?<![a-z])tov(?![a-z])",
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        quirk="mean and std (0.5) are those of its fine-tuning; its pre-training's were not found",
    ),
    # Pretrain/models/pretrain_model.py and backbone_wrapper.py: full; extract.py: a bare dict.
    # Exploring/trainer.py counts epochs from 0.
    Source("cmid", "CMID", ("online", "bare", "backbone"), file=r"cmid", first_epoch=1),
    # Scene Recognition/utils.py: {'model': torchvision's names, 'max_accuracy', 'config', …}, with
    # epochs from 0; main.py: 51 classes for Million-AID.
    Source(
        "rsp",
        "RSP",
        ("bare", "backbone"),
        sign=r"^/max_accuracy$|^fc\.weight 51x",
        file=r"(?<![a-z])rsp(?![a-z])",
        first_epoch=1,
    ),
    # timm/utils/checkpoint_saver.py for training checkpoints; published weights are bare.
    Source(
        "timm",
        "IMP (timm)",
        ("bare",),
        sign=r"^/(state_dict_ema|amp_scaler)$|^file .*(timm|_in1k|model\.(bin|safetensors)$)",
        quirk="some recipes of timm normalise otherwise: see the model's pretrained_cfg",
    ),
    Source(
        "torchvision",
        "IMP",
        ("bare",),
        sign=r"^fc\.weight 1000x",
        has=r"^fc\.weight 1000x",
        file=r"^resnet\d+-[0-9a-f]{8}\.pth$",
        quirk="timm's weights look the same (--source timm)",
    ),
    # mmengine's and mmcv's checkpoints: {'state_dict', 'meta', 'optimizer', …}.
    Source("mmlab", "", ("backbone", "query and neck"), sign=r"^/meta$"),
)
NAMES = tuple(dict.fromkeys(source.name for source in SOURCES))


class Recognition(NamedTuple):
    """The pre-training that a file was taken for.

    Attributes:
        source: A row of :data:`SOURCES`, or a mixture of several for an ambiguous file.
        reasons: Phrases with the reasons.
        warnings: Sentences on possible faults.
    """

    source: Source
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def inventory(file_name: str, beside: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the content of a file as lines.

    The lines are ``file NAME``, ``/key`` for each entry next to the tensors, and
    ``name 64x3x7x7`` for each tensor.
    """
    lines = [f"file {file_name}", *(f"/{key}" for key in beside)]
    lines += [f"{name} {'x'.join(map(str, t.shape))}" for name, t in tensors.items()]
    return "\n".join(lines)


def find_layout(names: Iterable[str], teacher: bool = False) -> tuple[Layout, str] | None:
    """Return the layout and the prefix of the student, or of the teacher, if it is in the file."""
    names = list(names)
    layouts = [layout for layout in LAYOUTS if layout.holds(names, layout.student)][:1]
    if not teacher:
        return (layouts[0], layouts[0].student) if layouts else None
    for layout in layouts or LAYOUTS:
        for prefix in layout.teachers:
            if layout.holds(names, prefix):
                return layout, prefix
    return None


def recognise(layout: Layout, lines: str, file_name: str, wanted: str = "auto") -> Recognition:
    """Return the pre-training that a file holds, with the reasons.

    Args:
        layout: Layout of the file's tensors.
        lines: The :func:`inventory` of the file.
        file_name: Name of the file, which decides if the content does not.
        wanted: Name of a source, or ``'auto'``.

    Raises:
        UserError: The wanted source has no files of this layout.
    """

    def found(pattern: str) -> str:
        match = re.search(pattern, lines, re.MULTILINE) if pattern else None
        return match.group().strip("/. ") if match else ""

    reasons = [layout.words()]
    rows = [row for row in SOURCES if layout.name in row.layouts]
    warnings = []
    if wanted != "auto":
        likely = {row.name for row in rows if found(row.sign)}
        rows = [row for row in rows if row.name == wanted]
        if not rows:
            raise UserError(f"{file_name}: {reasons[0]}, which files of --source {wanted} have not")
        if likely and wanted not in likely:
            warnings.append(f"the file looks like one of --source {' or '.join(sorted(likely))}")
        reasons.append(f"--source {wanted} was given")
    rows = [row for row in rows if not row.has or found(row.has)] or rows
    named = [row for row in rows if row.file and re.search(row.file, file_name.lower())]
    scores = {row: 2 * bool(found(row.sign)) + (row in named) for row in rows}
    best = max(rows, key=lambda row: scores[row])
    if wanted == "auto":
        sign = found(best.sign)
        if sign and not sign.startswith("file "):
            reasons.append(f"it has {sign!r}")
        if best in named or sign.startswith("file "):
            reasons.append(f"the file is called {file_name}")
    if scores[best] or len({row.name for row in rows}) == 1:
        return Recognition(best, tuple(reasons), tuple(warnings))
    return _undecided(rows, reasons)


def _undecided(rows: list[Source], reasons: list[str]) -> Recognition:
    names = list(dict.fromkeys(row.name for row in rows))
    methods = [row.method for row in rows if row.method]
    several = ", ".join(f"{row.method} (--source {row.name})" for row in rows if row.method)
    warnings = [f"the files of {several} look alike; --source says which it is"]
    if len({(row.mean, row.std, row.images) for row in rows}) > 1:
        warnings.append(
            "ImageNet's mean and std are assumed, but "
            + "; ".join(
                f"{row.method} has {row.images or f'mean {row.mean[0]} and std {row.std[0]}'}"
                for row in rows
                if (row.mean, row.std, row.images) != (RGB_MEAN, RGB_STD, "")
            )
        )
        images = ""
    else:
        images = rows[0].images
    method = " or ".join(methods) if len(names) == 2 else "unknown"
    source = Source(" or ".join(names), method, rows[0].layouts, images=images)
    return Recognition(source, tuple(reasons), tuple(warnings))
