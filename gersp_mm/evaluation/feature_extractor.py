"""mmpretrain's FeatureExtractor for configs of pre-training."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import mmpretrain
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from gersp_mm.backbones.agreement import require_loadable_model, without_module
from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.checkpoints.read import read_checkpoint, tensors_of
from gersp_mm.constants import CHANNEL_ORDER
from gersp_mm.evaluation.features import EvalImages, prepare
from gersp_mm.images.decode import load_rgb

SIZE = 224  # pixels; a config's KNNEvalHook replaces it


class FeatureExtractor(mmpretrain.FeatureExtractor):
    """Extract features with the config and a checkpoint of a pre-training run.

    mmpretrain's class takes its pipeline from ``test_dataloader``, which configs of pre-training do
    not have. Images are resized and cropped to the size of the config's KNNEvalHook, as that hook
    does. ``extractor(images, batch_size=1)`` returns the output of the model's ``extract_feat`` for
    each image.

    Args:
        model: The config, or the path of its file.
        pretrained: The checkpoint of its training.
        device: Where to run; the CPU by default.

    Raises:
        UserError: The checkpoint lacks tensors of the model other than those of its heads.
    """

    def __init__(
        self,
        model: str | os.PathLike | Config,
        pretrained: str | os.PathLike,
        device: str | torch.device | None = None,
    ) -> None:
        config = copy.deepcopy(model) if isinstance(model, Config) else Config.fromfile(model)
        path = str(pretrained)
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            network = MODELS.build(config.model)
        given = without_module(tensors_of(path, read_checkpoint(path).data))
        own = network.state_dict()
        require_loadable_model(path, own, given)
        fitting = {n: t for n, t in given.items() if n in own and own[n].shape == t.shape}
        network.load_state_dict(fitting, strict=False)
        network._config = config
        super().__init__(network, device=device)

    def _init_pipeline(self, cfg: Config) -> Any:
        hooks = [*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or ())]
        sizes = [h.get("size") for h in hooks if h and str(h.get("type")).endswith("KNNEvalHook")]
        return EvalImages([], next(filter(None, sizes), SIZE)).transform

    def preprocess(self, inputs: Sequence[Any], batch_size: int = 1) -> Iterator[torch.Tensor]:
        """Yield batches of uint8 RGB images, N×3×size×size.

        Args:
            inputs: Paths, or BGR arrays H×W×3 as in mmpretrain.
            batch_size: Number of images in a batch.
        """
        for start in range(0, len(inputs), batch_size):
            images = [
                Image.fromarray(np.ascontiguousarray(one[..., ::-1]))
                if isinstance(one, np.ndarray)
                else load_rgb(str(one))
                for one in inputs[start : start + batch_size]
            ]
            yield torch.stack([self.pipeline(image) for image in images])

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor, **kwargs: Any) -> list[Any]:
        """Return the features of each image of a batch.

        Args:
            inputs: A batch of :meth:`preprocess`.
            **kwargs: Arguments of the model's ``extract_feat``.
        """
        device = next(self.model.parameters()).device
        images = inputs.to(device, torch.float32)
        if scale := Normalisation.of(self.model.data_preprocessor):
            images = images if scale.channel_order == CHANNEL_ORDER else images.flip(1)
            images = prepare(images, scale.mean, scale.std)
        outputs = self.model.extract_feat(images, **kwargs)
        return [_of_image(outputs, number) for number in range(len(images))]


def _of_image(features: Any, number: int) -> Any:
    if isinstance(features, torch.Tensor):
        return features[number]
    return type(features)([_of_image(one, number) for one in features])
