"""Reading all weights that a run names, without running code from the files."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import checkpoint as host
from mmengine.runner.checkpoint import CheckpointLoader

from gersp_mm.backbones.agreement import require_same_input, require_whole_model, without_module
from gersp_mm.backbones.resized import resized_by_host
from gersp_mm.checkpoints.read import CONVERTER, read_checkpoint, tensors_of
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap

REMEDY = f"A run only reads files without code. Convert it: {CONVERTER} {{}} OUT.pth --trust"


def read_all_weights_safely() -> None:
    """Replace MMEngine's loaders of weights in this process by our safe reader.

    MMEngine's own loaders unpickle files that ``weights_only`` refuses. Their replacements fetch
    the file to a local path and pass it to :func:`gersp_mm.checkpoints.read.read_checkpoint`.
    """
    for scheme in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(scheme, _loader(scheme), force=True)


def read_weights(address: str) -> dict[str, Any]:
    """Read weights from a path or one of MMEngine's addresses, without running code from them.

    Args:
        address: A path, or an address with one of MMEngine's schemes.

    Returns:
        The outermost dict of the file, on the CPU.

    Raises:
        UserError: The file cannot be fetched or read.
    """
    with _local_file(address) as path:
        data = dict(read_checkpoint(path, remedy=REMEDY.format(path)).data)
    if address.startswith("mmcls://"):
        data = host._process_mmcls_checkpoint(data)
    return data


def require_trained_model(
    runner: Any, path: str, checkpoint: Mapping[str, Any], config: str
) -> None:
    """Refuse a checkpoint that lacks tensors of the model or was trained on another input.

    MMEngine itself warns of missing tensors, leaves them random and continues.

    Args:
        runner: The built run.
        path: Path of the checkpoint, for messages.
        checkpoint: The content of the checkpoint.
        config: Config of the run, for messages.

    Raises:
        UserError: Tensors or input differ; the message gives the likely reason.
    """
    model = unwrap(runner.model)
    given, resized = resized_by_host(model, without_module(tensors_of(path, checkpoint)))
    for note in resized:
        runner.logger.info(f"{path}: {note}")
    require_whole_model(path, model.state_dict(), given, config)
    part = getattr(model, "backbone", None)
    require_same_input(path, checkpoint.get("meta"), model.data_preprocessor, part)


def _loader(scheme: str) -> Callable[..., dict[str, Any]]:
    def load(filename: str, map_location: Any = None, **kwargs: Any) -> dict[str, Any]:
        return read_weights(filename)  # The caller moves the tensors to its device.

    load.__name__ = f"load_from_{scheme.rstrip(':/') or 'local'}"  # MMEngine logs its last part.
    return load


@contextmanager
def _local_file(address: str) -> Iterator[Path]:
    scheme, colon, name = address.partition("://")
    if not colon:
        yield Path(address).expanduser()
    elif scheme in ("http", "https"):
        yield _downloaded(address)
    elif scheme in ("torchvision", "modelzoo"):
        yield _downloaded(_listed(host.get_torchvision_models(), name, address))
    elif scheme == "mmcls":
        yield _downloaded(_listed(host.get_mmcls_models(), name, address))
    elif scheme in ("openmmlab", "open-mmlab"):
        name = host.get_deprecated_model_names().get(name, name)
        place = _listed(host.get_external_models(), name, address)
        web = place.startswith(("http://", "https://"))
        yield _downloaded(place) if web else Path(host._get_mmengine_home(), place)
    elif scheme.endswith(("s3", "petrel")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, os.path.basename(name) or "checkpoint.pth")
            with _fetching(address):
                backend = get_file_backend(address, backend_args=dict(backend="petrel"))
                path.write_bytes(backend.get(address))
            yield path
    else:
        raise UserError(
            f"{address} cannot be read, because files cannot be fetched from {scheme}://. "
            "Download the file and give its path."
        )


def _listed(addresses: dict[str, str], name: str, address: str) -> str:
    if name not in addresses:
        raise UserError(f"{address}: MMEngine knows no model {name!r}. Correct the name.")
    return addresses[name]


def _downloaded(url: str) -> Path:
    """Return the file in PyTorch's cache, as ``torch.hub`` does; one process downloads it."""
    path = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(url).path))
    fetch = functools.partial(_fetch, url, path)
    if get_rank() == 0:
        fetch()
    barrier()
    fetch()  # Other machines may have separate caches.
    return path


def _fetch(url: str, path: Path) -> None:
    if path.exists():
        return
    with _fetching(url):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=os.isatty(0))


@contextmanager
def _fetching(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Clients of networks and storage raise their own types.
        raise UserError(
            f"{address} cannot be fetched ({type(error).__name__}: {error}). Check the address and "
            "the network, or download the file elsewhere and give its path."
        ) from error
