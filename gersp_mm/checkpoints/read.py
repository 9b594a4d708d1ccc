"""Reading checkpoint files of unknown origin without running code that they may hold."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from gersp_mm.utils.errors import UserError

# Plain data of well-known libraries, which training checkpoints hold beside their tensors. Like all
# classes that are not in REAL they are read as stand-ins, but without --trust.
HARMLESS = {
    "_codecs.encode", "argparse.Namespace", "builtins.getattr", "builtins.object",
    "mmengine.logging.history_buffer.HistoryBuffer", "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy.dtype", "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType", "numpy.ndarray", "pathlib.Path", "pathlib.PosixPath",
    "pathlib.WindowsPath", "yacs.config.CfgNode",
}  # fmt: skip
REAL: dict[str, Any] = {
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": defaultdict,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in older pickles
SHOWN = 5  # names in a message

WEB_PAGE = (
    "is a web page (HTML), which Google Drive, Baidu and Hugging Face give in place of a file: "
    "download it with a browser or with gdown"
)
STARTS = {  # what a file that is not PyTorch's starts with
    b"version https://git-lfs": "is a Git LFS pointer, not the file: run `git lfs pull`",
    b"<": WEB_PAGE,
    b"{": "is JSON text, such as a server's error message: open it and download again",
    b"\x1f\x8b": "is packed with gzip: unpack it first",
    b"BZh": "is packed with bzip2: unpack it first",
    b"\xfd7zXZ": "is packed with xz: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"\x89HDF": "is an HDF5 file (Keras, TensorFlow): export it from there to PyTorch first",
    b"\x93NUMPY": "is a NumPy array",
    b"\x89PNG": "is a PNG image",
    b"\xff\xd8\xff": "is a JPEG image",
    b"%PDF": "is a PDF document",
}


class Content(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        data: the outermost dict.
        stand_ins: names of the classes whose objects are empty stand-ins in it.
    """

    data: Mapping[str, Any]
    stand_ins: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> Content:
    """Read a checkpoint file, by ``torch.load(weights_only=True)`` where that is enough.

    No code of the file runs, whatever ``trust`` is: where ``weights_only=True`` refuses, objects
    of all classes but tensors and plain Python become empty stand-ins, and nothing is imported.
    So Lightning's files can be read where Lightning is not installed.

    Args:
        path: a file of ``torch.save`` (zip or older format), or safetensors.
        trust: also accept a file with stand-ins for other classes than those in ``HARMLESS``.

    Raises:
        UserError: the file is something else, damaged, or needs ``trust``.
    """
    path = Path(path)
    _refuse_what_is_no_checkpoint(path)
    if _is_safetensors(path):
        return Content(_read_safetensors(path))
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        stand_ins: tuple[str, ...] = ()
    except Exception as error:  # of zip files, pickles and storages
        data, stand_ins = _read_with_stand_ins(path, error)
        _refuse_untrusted(path, stand_ins, trust)
        if isinstance(data, Exception):
            raise UserError(
                f"{path} cannot be read ({_first_line(data)}): was its download complete?"
            ) from error
    if not isinstance(data, Mapping):
        what = type(data).__name__
        whole = f"a whole pickled {what}" if isinstance(data, StandIn) else f"a {what}"
        raise UserError(f"{path} holds {whole}, no dict of weights: save its state_dict() instead")
    return Content(data, stand_ins)


class StandIn:
    """Takes the place of an object whose class is not read: accepts everything, holds nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """Stand in for what a stand-in for a function would return."""
        return StandIn()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore the item of a dict."""

    def append(self, value: Any) -> None:
        """Ignore the item of a list."""

    def extend(self, values: Any) -> None:
        """Ignore the items of a list."""


def _read_with_stand_ins(path: Path, reason: Exception) -> tuple[Any, tuple[str, ...]]:
    met: dict[str, type] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{PYTHON_2.get(module, module)}.{name}"
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            if full in REAL:
                return REAL[full]
            return met.setdefault(full, type(name.rpartition(".")[2], (StandIn,), {}))

    def load(file: Any, **kwargs: Any) -> Any:
        return Unpickler(file, **kwargs).load()

    module: Any = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="stand_ins")
    try:
        data = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except Exception as error:
        data = error if met else reason
        if "magic number" in str(error):
            data = ValueError("a Python pickle, but not one of torch.save, such as Detectron2's")
    return data, tuple(sorted(met))


def _refuse_untrusted(path: Path, stand_ins: tuple[str, ...], trust: bool) -> None:
    unknown = [name for name in stand_ins if name not in HARMLESS]
    if unknown and not trust:
        more = ", …" * (len(unknown) > SHOWN)
        raise UserError(
            f"{path} needs more than tensors and plain Python: {', '.join(unknown[:SHOWN])}{more}. "
            "Training frameworks pickle such objects (Lightning its hyper-parameters), but so does "
            "a file that is to run code. With --trust they are read as empty stand-ins"
        )


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the checkpoint file in it")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes): download it again")
    if _is_safetensors(path):
        return
    with open(path, "rb") as file:
        head = file.read(512)
    for start, what in STARTS.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise UserError(f"{path} ({size:,} bytes) {what}")
    if head.startswith(b"PK"):
        _refuse_bad_zip(path)
    elif tarfile.is_tarfile(path):
        raise UserError(f"{path} is a tar archive: unpack it first")
    elif not head.startswith(b"\x80"):
        raise UserError(f"{path} starts with {head[:8]!r}: this is no PyTorch checkpoint")


def _refuse_bad_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            ends = {name.partition("/")[2] for name in names}
            if "constants.pkl" in ends:
                raise UserError(
                    f"{path} is a TorchScript program: save the state_dict() of "
                    "torch.jit.load(…) instead"
                )
            if "data.pkl" not in ends:
                raise UserError(
                    f"{path} is a zip archive of other files ({', '.join(names[:SHOWN])}), not "
                    "PyTorch's: if the checkpoint is in it, unpack it"
                )
            for entry in archive.infolist():
                if entry.CRC:  # 0 where torch.save was told to leave it out
                    with archive.open(entry) as record:
                        while record.read(2**20):
                            pass
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut off ({_first_line(error)}): was its download complete?"
        ) from error


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 10**8


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} is a safetensors file: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:  # of the Rust library, or of the disk
        raise UserError(
            f"{path} cannot be read ({_first_line(error)}): was its download complete?"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
