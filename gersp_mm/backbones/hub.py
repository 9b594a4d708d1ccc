"""Hub folders: one backbone in the files from which other libraries load it by one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import torch

from gersp_mm.backbones.exported import ExportedBackbone
from gersp_mm.backbones.libraries import Network
from gersp_mm.results.row import Row
from gersp_mm.results.statistics import Cell
from gersp_mm.utils.errors import UserError, first_line
from gersp_mm.utils.files import replacing_folder
from gersp_mm.version import __version__

WEIGHTS = "model.safetensors"
CROP = 0.875  # 224 of 256 pixels, as the downstream configs evaluate
PAPER = "Generic Knowledge Boosted Pre-training For Remote Sensing Images"
ARXIV = "2401.04614"


def write_hub_folder(
    backbone: ExportedBackbone,
    folder: str | os.PathLike,
    licence: str | None = None,
    rows: Sequence[Row] = (),
) -> Path:
    """Write a folder that timm, transformers, torchgeo and others load, and this package too.

    The folder holds ``model.safetensors`` (timm's names), ``config.json`` (timm's fields, and this
    package's in ``gersp_mm``), ``torchgeo.ckpt`` (of sizes that timm has a name for), ``README.md``
    (the model card), ``<name>_mmlab.pth``, and ``pixel_scale.json`` if there is a pixel scale.

    Args:
        backbone: The backbone, a ResNet, vision transformer or Swin transformer.
        folder: The folder to write. It may exist if it is empty or an earlier hub folder.
        licence: Licence of the weights as an identifier of the hub, such as ``cc-by-4.0``; None
            writes that it is not stated.
        rows: Result rows. Those that were measured on the backbone's file go into the model card.

    Returns:
        The folder.

    Raises:
        UserError: Other libraries do not have the network, the folder holds other files, or
            safetensors is not installed.
    """
    if find_spec("safetensors") is None:
        raise UserError("a hub folder needs safetensors: pip install safetensors")
    from safetensors.torch import save_file

    folder = Path(folder)
    known = {WEIGHTS, "config.json", "README.md", "torchgeo.ckpt", "pixel_scale.json"}
    others = sorted(p.name for p in folder.glob("*") if p.name not in known | {_mmlab(folder)})
    if others and folder.is_dir():
        raise UserError(f"{folder} holds {others[0]}. Name a new folder for the export")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name the folder to write")
    network = Network(backbone.build(), str(backbone.path))
    tensors = {name: t.contiguous() for name, t in network.hub_tensors().items()}
    config = timm_config(backbone, network, licence)
    scale = backbone.meta.pixel_scale
    with replacing_folder(folder) as new:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        _write_json(new / "config.json", config)
        renamed = {f"model.{name}": tensor for name, tensor in tensors.items()}
        lightning = dict(hyper_parameters=dict(model=network.timm_name), state_dict=renamed)
        if network.is_standard:  # torchgeo knows a network by timm's name alone
            torch.save(lightning, new / "torchgeo.ckpt")
        backbone.save(new / _mmlab(folder))
        if scale is not None:
            _write_json(new / "pixel_scale.json", scale.as_dict())
        card = model_card(folder.name, backbone, network, config, licence, rows)
        (new / "README.md").write_text(card, encoding="utf-8")
    return folder


def timm_config(
    backbone: ExportedBackbone, network: Network, licence: str | None = None
) -> dict[str, Any]:
    """Return the content of ``config.json``: timm's fields, and what timm has no field for."""
    meta = backbone.meta
    config: dict[str, Any] = dict(
        architecture=network.timm_name,
        num_classes=0,
        num_features=network.channels,
        global_pool=network.hub_pool,
        model_args=network.timm_args(),
        pretrained_cfg=dict(
            tag=_name(meta.method or "unknown"),
            input_size=[3, network.size, network.size],
            fixed_input_size=network.family != "ResNet",
            interpolation="bilinear",
            crop_pct=CROP,
            crop_mode="center",
            mean=[value / 255 for value in meta.normalisation.mean],
            std=[value / 255 for value in meta.normalisation.std],
            num_classes=0,
            first_conv=network.first_layer,
            classifier="fc" if network.family == "ResNet" else "head",
            license=licence or "other",
            description=f"{meta.arch}, pre-trained by {meta.method or 'an unknown method'}",
        ),
        gersp_mm=dict(
            version=__version__,
            method=meta.method,
            epoch=meta.epoch,
            weights_sha256=meta.weights_sha256,
            bands=None if meta.pixel_scale is None else meta.pixel_scale.bands,
            pixel_scale=None if meta.pixel_scale is None else meta.pixel_scale.as_dict(),
        ),
    )
    if meta.method == "GeRSP":
        config["pretrained_cfg"] |= dict(paper_name=PAPER, paper_ids=f"arXiv:{ARXIV}")
    return config


def model_card(
    name: str,
    backbone: ExportedBackbone,
    network: Network,
    config: dict[str, Any],
    licence: str | None = None,
    rows: Sequence[Row] = (),
) -> str:
    """Return the text of the model card, all of it from the file's meta and from result rows."""
    loader = jinja2.PackageLoader("gersp_mm.backbones", "templates")
    env = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return env.get_template("model_card.md.j2").render(
        name=name,
        meta=backbone.meta,
        source=backbone.meta.stored.get("source") or {},
        trained_from=backbone.meta.stored.get("pretrained") or {},
        network=network,
        config=config,
        licence=licence,
        results=measured(backbone, rows),
        arxiv=ARXIV,
        paper=PAPER,
        mmlab=_mmlab(Path(name)),
    )


def measured(backbone: ExportedBackbone, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the results of rows that were measured on a backbone's file, one entry a column."""
    columns: dict[Any, dict[int | None, float]] = {}
    for row in rows:
        if backbone.sha256 is not None and row.checkpoint_sha256 == backbone.sha256:
            columns.setdefault(row.column, {})[row.seed] = row.value
    cells = {column: Cell(values) for column, values in columns.items()}
    return [
        dict(column=column, mean=cell.mean, text=cell.text, count=len(cell.values))
        for column, cell in cells.items()
    ]


def push(folder: str | os.PathLike, name: str, private: bool = True) -> str:
    """Upload a hub folder to the Hugging Face hub.

    Args:
        folder: Folder that :func:`write_hub_folder` wrote.
        name: ``organisation/name`` of the repository, which is created if it does not exist.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        UserError: The folder is not a hub folder, huggingface_hub is not installed, or the upload
            is refused.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file() or not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no hub folder. Write one: gersp export RUN --to hub {folder}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name!r} is no name of a repository. Write it as organisation/name")
    if find_spec("huggingface_hub") is None:
        raise UserError("an upload needs huggingface_hub: pip install huggingface_hub")
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the backbone")
    except Exception as error:  # of the network, of the hub, of rights
        text = first_line(error, named=False)
        raise UserError(f"{folder} was not uploaded to {name} at {api.endpoint}: {text}") from error
    return str(url)


def _mmlab(folder: Path) -> str:
    return f"{folder.name}_mmlab.pth"


def _name(method: str) -> str:
    return re.sub(r"\W+", "_", method).strip("_").lower()


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
