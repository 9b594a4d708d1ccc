"""GeRSP: generic knowledge boosted pre-training for remote sensing images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.registry import MODELS as HOST_MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

from gersp_mm.models import batch_norm, experiments, key_norm, settings, speed
from gersp_mm.models.info_nce import contrastive_loss
from gersp_mm.models.key_exchange import gather_keys
from gersp_mm.models.key_norm import KEY_NORMS, SPLIT_SIZE, chosen
from gersp_mm.models.negative_queue import enqueue, random_queue
from gersp_mm.models.teacher import Teacher, with_teacher
from gersp_mm.registry import MODELS
from gersp_mm.utils.model import as_tuple

Features = tuple[torch.Tensor, ...]


@MODELS.register_module()
class GeRSP(BaseSelfSupervisor):
    r"""One student, trained on labelled natural images and on unlabelled remote-sensing images.

    The student backbone serves two branches. *Natural-image auxiliary learning* classifies
    natural images (cross entropy, L_ce). *Remote-sensing contrastive learning* matches the
    student's query view of a remote-sensing image with an EMA teacher's key view of the same
    image, against a queue of negatives (InfoNCE, L_ct). The total is
    :math:`L_{total} = L_{ct} + \alpha L_{ce}`.

    :class:`gersp_mm.TeacherUpdateHook` updates the teacher; other training loops call
    :meth:`update_teacher` once after every optimizer step.

    Either branch can be left out: ``natural_head=None`` or ``alpha=0`` gives MoCo on
    remote-sensing images; ``neck=None, head=None`` gives supervised pre-training. A branch that is
    left out is not built, so that no parameter is unused.

    Args:
        backbone: Config of the student backbone, or a module. It returns one N×C×H×W map or N×C
            vector, bare or in a tuple.
        neck: Config of the projector (``MoCoV2Neck``), or a module. It gets the backbone's tuple.
        head: Config of the contrastive loss: :class:`gersp_mm.InfoNCEHead`, or mmpretrain's
            ``ContrastiveHead`` (which costs a copy of the queue in every step).
        natural_head: Config of a classification head of mmpretrain (``LinearClsHead``), or a
            module. It gets a tuple with one N×C vector. The tools replace ``num_classes='auto'``
            by the number of classes of the data; elsewhere it means ImageNet's 1000. Numbers in
            ``topk`` above ``num_classes`` are dropped.
        queue_len: Number of negative keys.
        feat_dim: Dimension of queries and keys, the projector's ``out_channels``.
        teacher_momentum: m in [0, 1], the share of the teacher that an update keeps. 0.996 is the
            paper's value (by a secondary source); the released config has 0.999.
        alpha: Weight of L_ce, at least 0. 1 in the released code; the paper's value was not found.
        joint_forward: Run query views and natural images through the student in one forward, so
            that BatchNorm sees both (as released), or one after the other.
        natural_statistics: Whether natural images enter BatchNorm's running statistics, by which
            the exported backbone normalises. False restricts them to the remote-sensing images
            (in training, each kind is normalised by its own batch) and needs
            ``joint_forward=False``. This is neither in the paper nor in the released code.
        symmetric: Use each of the two views once as query and once as key: L_ct is the mean of
            both, and the queue gets the keys of both. An update then costs about twice as much.
            This is neither in the paper nor in the released code.
        key_bn: How the keys' BatchNorm is prevented from revealing which images belong together:
            ``'shuffle'`` exchanges images between ranks (:mod:`gersp_mm.models.key_exchange`),
            ``'split'`` normalises the batch of each rank in groups, as several GPUs would, and
            deals keys to other groups than their queries' (:mod:`gersp_mm.models.key_norm`);
            ``'sync'`` turns every BatchNorm into SyncBN, ``'none'`` does nothing. Shuffling needs
            more than one rank; ``'auto'`` shuffles where there are several and splits on one.
        split_size: Images of each kind (queries, keys, natural images) in a group of ``'split'``,
            at least 2. The groups of a batch come as near to it as equal groups can. A batch has at
            least two groups, unless they would have fewer than 8 images. 32 is what a GPU of the
            released run has.
        teacher_init: ``'copy'`` starts the teacher as a copy of the student; ``'separate'``
            initialises its backbone separately, as the released code does in ``init_weights``.
        teacher_projector: ``'ema'`` averages the projector too; ``'frozen'`` keeps its initial
            weights, as the released code does.
        channels_last: Keep convolution weights and images channels last in memory, which is
            faster on GPUs with tensor cores and on CPUs.
        compile: Compile the forward of both backbones with ``torch.compile``; a dict holds
            its options, such as ``dict(mode='max-autotune-no-cudagraphs')``.
        data_preprocessor: Config; :class:`gersp_mm.PairedDataPreprocessor` by default.
        init_cfg: Initialisation, see :class:`mmengine.model.BaseModule`.

    Attributes:
        teacher: :class:`gersp_mm.models.Teacher`, or None without the contrastive branch.
        queue: The negative keys, queue_len × feat_dim, of unit length; row i holds key i. A
            persistent buffer.
        queue_ptr: One int64, the row that is written next. A persistent buffer.
        exchanged_bytes: Bytes of key images that this rank sent to others in the last step.

    Raises:
        UserError: An argument is out of its range, or the parts do not fit.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        neck: dict | nn.Module | None = None,
        head: dict | nn.Module | None = None,
        natural_head: dict | nn.Module | None = None,
        queue_len: int = 65536,
        feat_dim: int = 128,
        teacher_momentum: float = 0.996,
        alpha: float = 1.0,
        joint_forward: bool = True,
        natural_statistics: bool = True,
        symmetric: bool = False,
        key_bn: str = "auto",
        split_size: int = SPLIT_SIZE,
        teacher_init: str = "copy",
        teacher_projector: str = "ema",
        channels_last: bool = False,
        compile: bool | dict = False,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if alpha == 0:
            natural_head = None
        settings.check_values(
            queue_len=queue_len,
            feat_dim=feat_dim,
            teacher_momentum=teacher_momentum,
            alpha=alpha,
            key_bn=key_bn,
            split_size=split_size,
            teacher_init=teacher_init,
            teacher_projector=teacher_projector,
            joint_forward=joint_forward,
            natural_statistics=natural_statistics,
            symmetric=symmetric,
            channels_last=channels_last,
        )
        settings.check_parts(neck, head, natural_head, feat_dim, joint_forward, natural_statistics)
        if data_preprocessor is None:
            data_preprocessor = {}
        if isinstance(data_preprocessor, dict):
            data_preprocessor = {"type": "gersp_mm.PairedDataPreprocessor", **data_preprocessor}

        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if isinstance(natural_head, dict):
            natural_head = HOST_MODELS.build(settings.complete_head(natural_head))
        self.natural_head: Any = natural_head
        self.alpha = alpha
        self.joint_forward = joint_forward
        self.natural_statistics = natural_statistics
        self.symmetric = symmetric
        self.key_bn = key_bn
        self.split_size = split_size
        self.groups = batch_norm.Groups()
        self.teacher_momentum = teacher_momentum
        self.teacher_init = teacher_init

        self.exchanged_bytes = 0
        self.teacher: Teacher | None = None
        if self.with_contrastive_branch:
            self.teacher = Teacher(
                self.backbone, self.neck, average_neck=teacher_projector == "ema"
            )
            self.register_buffer("queue", random_queue(queue_len, feat_dim))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        KEY_NORMS[chosen(key_bn)].prepare(self)
        self.memory_format = speed.lay_out(self, channels_last)
        backbones = [part.backbone for part in (self, self.teacher) if part is not None]
        speed.compile_forward(backbones, compile)

    @property
    def with_contrastive_branch(self) -> bool:
        """Whether the model has the branch of remote-sensing contrastive learning."""
        return self.head is not None

    @property
    def with_natural_branch(self) -> bool:
        """Whether the model has the branch of natural-image auxiliary learning."""
        return self.natural_head is not None

    def loss(
        self,
        inputs: Mapping[str, torch.Tensor],
        data_samples: Sequence[DataSample] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute both losses for one batch, and add the batch's keys to the queue.

        Args:
            inputs: Normalised images: ``rs_query`` and ``rs_key``, two views of N remote-sensing
                images (N×3×H×W each), and ``natural``, M natural images (M×3×H×W). Inputs of a
                branch that is left out are ignored.
            data_samples: M samples holding ``gt_label``.

        Returns:
            ``loss_ct`` = L_ct and ``loss_ce`` = α·L_ce, whose sum is minimised. For the log:
            ``acc_ct`` and ``acc_ce_top1`` in per cent, ``sim_pos`` and ``sim_neg`` in [-1, 1], and
            ``feat_std`` (0: collapsed, about 1: spread over the whole sphere).

        Raises:
            UserError: An entry of ``inputs`` or the samples are missing.
        """
        settings.check_inputs(inputs, self.with_contrastive_branch, self.with_natural_branch)
        if self.with_contrastive_branch:
            self._set_groups(inputs)
            if self.symmetric:
                inputs = experiments.both_ways(inputs)
        rs_features, natural_features = self._student_forward(inputs)
        losses: dict[str, torch.Tensor] = {}
        if rs_features is not None:
            query = F.normalize(as_tuple(self.neck(rs_features))[0], dim=1)
            key = self._teacher_keys(inputs["rs_key"])
            losses.update(contrastive_loss(self.head, query, key, self.queue))
            enqueue(self.queue, self.queue_ptr, gather_keys(key))
        if natural_features is not None:
            losses.update(self._natural_loss(natural_features, data_samples))
        return losses

    def extract_feat(self, inputs: torch.Tensor) -> Features:
        """Return the backbone's outputs, a tuple, for normalised images N×3×H×W."""
        return as_tuple(self.backbone(inputs))

    def _student_forward(
        self, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[Features | None, Features | None]:
        """Return the student's features of the query views and of the natural images."""
        rs_features = natural_features = None
        if self.with_contrastive_branch and self.with_natural_branch and self.joint_forward:
            query, natural = self._laid_out(inputs["rs_query"]), self._laid_out(inputs["natural"])
            joint = self._features(torch.cat([query, natural]))
            return tuple(f[: len(query)] for f in joint), tuple(f[len(query) :] for f in joint)
        if self.with_contrastive_branch:
            rs_features = self._features(self._laid_out(inputs["rs_query"]))
        if self.with_natural_branch:
            with experiments.running_statistics(self.backbone, moved=self.natural_statistics):
                natural_features = self._features(self._laid_out(inputs["natural"]))
        return rs_features, natural_features

    def _features(self, images: torch.Tensor) -> Features:
        return batch_norm.in_groups(self.extract_feat, images, self.groups)

    def _set_groups(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Tell every BatchNorm in which groups it normalises this step's images."""
        sizes = [len(inputs["rs_query"])]
        if self.with_natural_branch:
            sizes.append(len(inputs["natural"]))
        blocked = self.memory_format is torch.channels_last
        groups = key_norm.groups_of(self.key_bn, sizes, self.split_size, blocked)
        if groups == self.groups:
            return
        self.groups = groups
        batch_norm.set_groups(self, groups)
        for part in (self.neck, self.natural_head):  # They get images in the order of the batch.
            if part is not None:
                batch_norm.set_groups(part, groups._replace(blocked=False))

    def _laid_out(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=self.memory_format)

    @torch.no_grad()
    def _teacher_keys(self, images: torch.Tensor) -> torch.Tensor:
        """Return the teacher's keys, N × feat_dim of unit length, for key views, N×3×H×W."""

        def encode(images: torch.Tensor) -> torch.Tensor:
            assert self.teacher is not None
            return F.normalize(self.teacher(self._laid_out(images))[0], dim=1)

        norm = KEY_NORMS[chosen(self.key_bn)]
        self.exchanged_bytes = norm.sent_bytes(images)
        return norm.keys(encode, images, self.groups)

    def _natural_loss(
        self, features: Features, data_samples: Sequence[DataSample] | None
    ) -> dict[str, torch.Tensor]:
        """Return α·L_ce and the top-k accuracies of the natural images."""
        settings.check_labels(data_samples)
        vector = features[-1]
        if vector.ndim == 4:
            vector = F.adaptive_avg_pool2d(vector, 1).flatten(1)
        losses = self.natural_head.loss((vector,), data_samples)
        accuracies = {k.replace("accuracy_top-", "acc_ce_top"): v for k, v in losses.items()}
        loss = accuracies.pop("loss")
        return dict(loss_ce=self.alpha * loss, **{k: v[0] for k, v in accuracies.items()})

    def update_teacher(self, momentum: float | None = None) -> None:
        """Move the teacher towards the student. Call it once per optimizer step, after the step.

        Args:
            momentum: m in [0, 1] for this update; ``teacher_momentum`` by default.
        """
        if self.teacher is not None:
            momentum = self.teacher_momentum if momentum is None else momentum
            self.teacher.update(self.backbone, self.neck, momentum)

    def init_weights(self) -> None:
        """Initialise the student, and the teacher as its exact copy or as configured."""
        first_call = not self.is_init
        super().init_weights()
        if self.teacher is None or not first_call:
            return
        self.teacher.copy_from(self.backbone, self.neck)
        if self.teacher_init == "separate":
            self.teacher.backbone.init_weights()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load a state; the teacher becomes a copy of the student if the file holds no teacher."""
        if self.teacher is not None:
            state_dict.update(with_teacher(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
