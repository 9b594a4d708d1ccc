"""The same network in other libraries: what its tensors are called there, and how it is built.

ResNets have the same names everywhere. Vision transformers and Swin transformers of mmpretrain get
those of timm or torchvision; the weights are the same numbers, and the columns of Swin's patch
merging are put into the order of the other libraries (mmpretrain gathers a patch by ``nn.Unfold``,
channel by channel).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from gersp_mm.checkpoints.compare import compare
from gersp_mm.utils.errors import UserError

LIBRARIES = ("torchvision", "timm", "transformers")

Tensors = dict[str, torch.Tensor]
Renaming = tuple[tuple[str, str], ...]

# Patterns that are replaced one after the other in each name, by family and library.
NAMES: dict[str, dict[str, Renaming]] = {
    "VisionTransformer": {
        "timm": (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^ln1\.", "norm."),
            (r"^ln2\.", "fc_norm."),
            (r"^layers\.", "blocks."),
            (r"\.ln([12])\.", r".norm\1."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        ),
        "torchvision": (
            (r"^cls_token$", "class_token"),
            (r"^pos_embed$", "encoder.pos_embedding"),
            (r"^patch_embed\.projection\.", "conv_proj."),
            (r"^ln1\.", "encoder.ln."),
            (r"^layers\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
            (r"\.ln([12])\.", r".ln_\1."),
            (r"\.attn\.qkv\.(weight|bias)$", r".self_attention.in_proj_\1"),
            (r"\.attn\.proj\.", ".self_attention.out_proj."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.0."),
            (r"\.ffn\.layers\.1\.", ".mlp.3."),
        ),
    },
    "SwinTransformer": {
        "timm": (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^norm3\.", "norm."),
            (r"\.w_msa\.", "."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"^stages\.0\.downsample\.", "layers.1.downsample."),
            (r"^stages\.1\.downsample\.", "layers.2.downsample."),
            (r"^stages\.2\.downsample\.", "layers.3.downsample."),
            (r"^stages\.", "layers."),
        ),
        "torchvision": (
            (r"^patch_embed\.projection\.", "features.0.0."),
            (r"^patch_embed\.norm\.", "features.0.2."),
            (r"^norm3\.", "norm."),
            (r"\.w_msa\.", "."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.0."),
            (r"\.ffn\.layers\.1\.", ".mlp.3."),
            (r"^stages\.0\.downsample\.", "features.2."),
            (r"^stages\.1\.downsample\.", "features.4."),
            (r"^stages\.2\.downsample\.", "features.6."),
            (r"^stages\.0\.blocks\.", "features.1."),
            (r"^stages\.1\.blocks\.", "features.3."),
            (r"^stages\.2\.blocks\.", "features.5."),
            (r"^stages\.3\.blocks\.", "features.7."),
        ),
    },
}
# Sizes of timm's models by name.
STANDARD: dict[str, dict[str, dict[str, Any]]] = {
    "VisionTransformer": {
        f"vit_{name}_patch16_224": dict(
            img_size=224, patch_size=16, embed_dim=width, depth=12, num_heads=heads, mlp_ratio=4.0
        )
        for name, width, heads in (("small", 384, 6), ("tiny", 192, 3), ("base", 768, 12))
    },
    "SwinTransformer": {
        f"swin_{name}_patch4_window7_224": dict(
            img_size=224, patch_size=4, embed_dim=width, depths=[2, 2, deep, 2],
            num_heads=[width // 32 * 2**i for i in range(4)], window_size=7,
        )
        for name, width, deep in (("tiny", 96, 6), ("small", 96, 18), ("base", 128, 18))
    },
}  # fmt: skip
INDEX = "relative_position_index"  # a constant of Swin, which every library computes
UNFOLD = (0, 2, 1, 3)  # position in nn.Unfold's order of the four patches that are merged


class Network:
    """A network that this package exported, as other libraries know it.

    Args:
        network: The backbone of mmpretrain.
        where: Its file or name, for messages.

    Attributes:
        family: ``ResNet``, ``VisionTransformer`` or ``SwinTransformer``.
        size: Side of its images in pixels: that of the position embedding, 224 for a ResNet.

    Raises:
        UserError: It is none of these, or one that the other libraries do not have.
    """

    def __init__(self, network: Any, where: str) -> None:
        self.network = network
        self.where = where
        self.family = type(network).__name__
        if self.family not in ("ResNet", *NAMES):
            raise self._refusal(f"a {self.family}")
        self.size = image_side(network)
        if self.family == "ResNet":  # Of other transformers, the tensors do not fit.
            odd = network.deep_stem or network.avg_down or network.style != "pytorch"
            if odd or network.base_channels != 64:
                raise self._refusal("a ResNet with another stem, style or width")

    def _refusal(self, kind: str) -> UserError:
        return UserError(
            f"{self.where} is {kind}, for which no other library has a counterpart. Use "
            "library=None (mmpretrain)"
        )

    @property
    def timm_name(self) -> str:
        """Name of timm's model: of the same sizes, or of sizes that :meth:`timm_args` replaces."""
        if self.family == "ResNet":
            return f"resnet{self.network.depth}"
        return self._standard() or next(iter(STANDARD[self.family]))

    def timm_args(self) -> dict[str, Any]:
        """Return the arguments by which timm's model becomes this network."""
        if self.family == "ResNet":
            return {}
        pooled = {}
        if self.family == "VisionTransformer":
            pooled = dict(global_pool=self.hub_pool, fc_norm=False)
        return pooled if self._standard() else {**self._sizes(), **pooled}

    @property
    def is_standard(self) -> bool:
        """Whether timm's model has the same tensors by its name alone."""
        return self.family == "ResNet" or self._standard() is not None

    def _standard(self) -> str | None:
        sizes = self._sizes()
        return next((n for n, other in STANDARD[self.family].items() if other == sizes), None)

    def _sizes(self) -> dict[str, Any]:
        """Return the sizes of a transformer by timm's names."""
        if self.family == "VisionTransformer":
            sizes = _vit_sizes(self.network)
            return dict(
                img_size=self.size,
                patch_size=sizes["patch_size"],
                embed_dim=sizes["hidden_dim"],
                depth=sizes["num_layers"],
                num_heads=sizes["num_heads"],
                mlp_ratio=sizes["mlp_dim"] / sizes["hidden_dim"],
            )
        sizes = _swin_sizes(self.network)
        return dict(
            img_size=self.size,
            patch_size=sizes["patch_size"][0],
            embed_dim=sizes["embed_dim"],
            depths=list(sizes["depths"]),
            num_heads=list(sizes["num_heads"]),
            window_size=sizes["window_size"][0],
        )

    @property
    def hub_pool(self) -> str:
        """How timm's model pools its features: ``avg`` or ``token``."""
        token = getattr(self.network, "out_type", "") == "cls_token"
        return "token" if token else "avg"

    @property
    def first_layer(self) -> str:
        """Name of timm's first convolution."""
        return "conv1" if self.family == "ResNet" else "patch_embed.proj"

    @property
    def channels(self) -> int:
        """Number of features."""
        if self.family == "ResNet":
            return int(self.network.feat_dim)
        if self.family == "SwinTransformer":
            return int(self.network.num_features[-1])
        return int(self.network.embed_dims)

    @property
    def drops_norm(self) -> bool:
        """Whether timm's model lacks a norm of the network, the one behind the average."""
        return self.family == "VisionTransformer" and self.hub_pool == "avg"

    def hub_tensors(self) -> Tensors:
        """Return the weights that timm's own model has, without the norm behind the average."""
        tensors = self.tensors("timm").items()
        return {name: t for name, t in tensors if not name.startswith("fc_norm.")}

    def tensors(self, library: str) -> Tensors:
        """Return the weights by the names of a library (``timm`` or ``torchvision``).

        Of a vision transformer that averages its patches, the norm behind the average (``ln2``) is
        called ``fc_norm`` in timm; torchvision has no such layer, and it is left out.
        """
        state = self.network.state_dict()
        if self.family == "ResNet":
            return dict(state)
        renamed = {}
        for name, tensor in state.items():
            if name.endswith(INDEX) or (library == "torchvision" and name.startswith("ln2.")):
                continue
            if ".downsample." in name:
                tensor = _regrouped(tensor)
            renamed[_renamed(name, NAMES[self.family][library])] = tensor
        return renamed

    def build(self, library: str) -> nn.Module:
        """Build the network of a library with these weights, in eval mode, without classifier.

        Args:
            library: ``torchvision``, ``timm`` or ``transformers`` (its wrapper of timm's models).

        Raises:
            UserError: The library is not installed, or the network lacks a tensor there.
        """
        required = ("timm", "transformers") if library == "transformers" else (library,)
        for module in required:
            if find_spec(module) is None:
                raise UserError(f"library={library!r} needs {module}: pip install {module}")
        names = "torchvision" if library == "torchvision" else "timm"
        network = self._torchvision() if names == "torchvision" else self._timm()
        tensors = self.tensors(names)
        own = {name: t for name, t in network.state_dict().items() if not name.endswith(INDEX)}
        if difference := compare(tensors, own):
            raise UserError(f"{self.where} does not fit {library}'s network: {difference}")
        network.load_state_dict(tensors, strict=False)
        network.eval()
        return self._wrapped(network) if library == "transformers" else network

    def _timm(self) -> nn.Module:
        import timm

        network = timm.create_model(self.timm_name, num_classes=0, **self.timm_args())
        if self.drops_norm:
            # timm has one norm, before or behind the average; mmpretrain has both.
            network.fc_norm = nn.LayerNorm(self.channels, eps=self.network.ln2.eps)
        return network

    def _torchvision(self) -> nn.Module:
        from torchvision import models

        if self.family == "ResNet":
            network = getattr(models, f"resnet{self.network.depth}")()
            network.fc = nn.Identity()
        elif self.family == "VisionTransformer":
            network = models.VisionTransformer(image_size=self.size, **_vit_sizes(self.network))
            network.heads = nn.Identity()
        else:
            network = models.SwinTransformer(**_swin_sizes(self.network))
            network.head = nn.Identity()
        return network

    def _wrapped(self, network: nn.Module) -> nn.Module:
        import transformers

        config = transformers.TimmWrapperConfig(
            architecture=self.timm_name, model_args=self.timm_args(), num_labels=0
        )
        wrapper = transformers.TimmWrapperModel(config)
        wrapper.timm_model = network
        return wrapper.eval()


def _renamed(name: str, patterns: Renaming) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _regrouped(tensor: torch.Tensor) -> torch.Tensor:
    """Put the last axis of a patch merging's tensor, channels × 4 patches, patch by patch."""
    if tensor.shape[-1] % 4:
        raise UserError(f"a patch merging has {tensor.shape[-1]} inputs, no multiple of 4")
    return tensor.unflatten(-1, (-1, 4))[..., UNFOLD].transpose(-1, -2).flatten(-2).contiguous()


def image_side(network: Any) -> int:
    """Return the side of the images of a network in pixels; 224 where it takes any."""
    if type(network).__name__ == "VisionTransformer":
        return int(network.img_size[0])
    if type(network).__name__ == "SwinTransformer":
        return int(network.patch_embed.init_input_size[0])
    return 224


def _vit_sizes(network: Any) -> dict[str, Any]:
    settings: Mapping[str, Any] = network.arch_settings
    return dict(
        patch_size=int(network.patch_embed.projection.kernel_size[0]),
        num_layers=int(settings["num_layers"]),
        num_heads=int(settings["num_heads"]),
        hidden_dim=int(network.embed_dims),
        mlp_dim=int(settings["feedforward_channels"]),
    )


def _swin_sizes(network: Any) -> dict[str, Any]:
    window = int(network.stages[0].blocks[0].attn.window_size)
    patch = int(network.patch_embed.projection.kernel_size[0])
    return dict(
        patch_size=[patch, patch],
        embed_dim=int(network.embed_dims),
        depths=list(network.depths),
        num_heads=list(network.num_heads),
        window_size=[window, window],
    )
