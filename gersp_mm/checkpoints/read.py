"""Reading checkpoint files of unknown origin without running code from them."""

from __future__ import annotations

import _codecs
import ast
import contextlib
import os
import pickle
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log

from gersp_mm.checkpoints.compare import not_finite
from gersp_mm.checkpoints.integrity import (
    Identity,
    identity,
    named_after_its_hash,
    verify_records,
    weights_sha256,
)
from gersp_mm.utils.errors import UserError, counted, first_line, listed

# Classes of plain data of well-known libraries that training checkpoints hold next to their
# tensors. Their objects are read as stand-ins, like all classes that are not in REAL, but without
# --trust.
HARMLESS = {
    "argparse.Namespace", "builtins.object", "pathlib.Path", "pathlib.PosixPath",
    "pathlib.WindowsPath", "yacs.config.CfgNode",
}  # fmt: skip
REAL: dict[str, Any] = {
    "builtins.set": set,
    "collections.Counter": Counter,  # milestones of MultiStepLR
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": defaultdict,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
}


class _Log(HistoryBuffer):
    """A log buffer that takes no functions from a file and becomes MMEngine's once it is read."""

    def __setstate__(self, state: Any) -> None:
        """Set the state without the functions that MMEngine's class would call."""
        self.__dict__.update({k: v for k, v in state.items() if k != "statistics_methods"})
        self.__class__ = HistoryBuffer
        self._set_default_statistics()  # MMEngine sets them for the first buffer of a process only.


# MMEngine's log buffers, and the numpy scalars and arrays in them.
METHODS = ("min", "max", "current", "mean")  # of a log buffer, which it pickles by name
LOG = "mmengine.logging.history_buffer.HistoryBuffer"
RECONSTRUCT, SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
LOGS: dict[str, Any] = {
    "_codecs.encode": _codecs.encode,
    LOG: _Log,
    **{f"{LOG}.{method}": getattr(HistoryBuffer, method) for method in METHODS},
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    **{f"numpy.{core}.multiarray._reconstruct": RECONSTRUCT for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": SCALAR for core in ("core", "_core")},
    **{f"numpy.dtypes.{type(np.dtype(c)).__name__}": type(np.dtype(c)) for c in "?bBhHiIlLqQefd"},
}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in older pickles
CONVERTER = "gersp convert"
TRUST = "With --trust they are read as empty stand-ins"

WEB_PAGE = (
    "is a web page (HTML), which Google Drive, Baidu and Hugging Face give in place of a file: "
    "download it with a browser or with gdown"
)
STARTS = {  # first bytes of files that are not PyTorch's
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


class UntrustedError(UserError):
    """A file holds objects of classes that are not read without ``trust``."""


class Content(NamedTuple):
    """The content of a checkpoint file.

    Attributes:
        data: The outermost dict; the text of a config is ``data['meta']['config_text']``.
        stand_ins: Names of the classes whose objects are empty stand-ins.
    """

    data: Mapping[str, Any]
    stand_ins: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike, trust: bool = False, remedy: str = TRUST) -> Content:
    """Read a checkpoint file and check that its bytes are those that were written.

    The file is read with ``torch.load(weights_only=True)``, which is told to accept MMEngine's log
    buffers and numpy's scalars. If that fails, objects of all other classes become empty stand-ins,
    and no module is imported. No code of the file runs, whatever the value of ``trust``, and
    Lightning's files can be read without Lightning.

    ``meta['config']``, which ``Runner.resume`` of MMEngine would run, becomes
    ``meta['config_text']``.

    The bytes are compared with the checksums of the zip file and with ``meta['weights_sha256']``.
    The log says once if a file has neither.

    Args:
        path: A file of ``torch.save`` (zip or older format), or safetensors.
        trust: Also accept a file with stand-ins for other classes than those in ``HARMLESS``.
        remedy: The advice in the message if ``trust`` is missing: a sentence without its full stop.

    Raises:
        UserError: The file is of another kind, is damaged, or needs ``trust``.
    """
    path = Path(path)
    try:
        known = path.is_file() and identity(path) in _verified
        verified = _refuse_what_is_no_checkpoint(path, known)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Check its permissions"
        ) from error
    stand_ins: tuple[str, ...] = ()
    if _is_safetensors(path):
        data: Any = _read_safetensors(path)
    else:
        try:
            with _logs_allowed():
                data = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # Damaged archives and pickles may raise anything.
            data, stand_ins = _read_with_stand_ins(path, error)
            _refuse_untrusted(path, stand_ins, trust, remedy)
            if isinstance(data, Exception):
                raise UserError(
                    f"{path} cannot be read ({first_line(data)}): was its download complete?"
                ) from error
    if not isinstance(data, Mapping):
        kind = type(data).__name__
        whole = f"a whole pickled {kind}" if isinstance(data, StandIn) else f"a {kind}"
        raise UserError(f"{path} holds {whole}, no dict of weights: save its state_dict() instead")
    data = _without_code(data)
    if known or _has_stored_hash(path, data) or verified or named_after_its_hash(path):
        if (name := identity(path)) is not None:
            _verified.add(name)
    else:
        _say_unverified(path)
    return Content(data, stand_ins)


def tensors_of(path: str | os.PathLike, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors that MMEngine loads: those below ``state_dict``, or of the file itself.

    Args:
        path: Path of the file, for messages.
        data: The data of :func:`read_checkpoint`.

    Raises:
        UserError: There are no tensors; the message names the content of the file.
    """
    state = data.get("state_dict", data)
    found = _tensors(state)
    if found:
        return found
    place = next((key for key, value in data.items() if key != "meta" and _tensors(value)), None)
    if place is not None:
        raise UserError(
            f"{path} holds its weights below {place!r}, where MMEngine does not look. Make a plain "
            f"file of it: {CONVERTER} {path} OUT.pth"
        )
    keys = list(state) if isinstance(state, Mapping) else []
    raise UserError(
        f"{path} holds no tensors; it has {listed(keys) or 'nothing'}. Name the file that the "
        "weights were saved to"
    )


def require_finite(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise a :class:`UserError` that names the tensors which hold NaN or infinity, if any do."""
    if bad := not_finite(tensors):
        raise UserError(
            f"{path}: {counted(len(bad), 'tensor')} hold{'s' * (len(bad) == 1)} NaN or infinity "
            f"({listed(bad)}): its training "
            "diverged, or the file is damaged. Use a checkpoint from before"
        )


class Unread:
    """A stand-in, false as a boolean, for a value of a config that is not plain data."""

    def __bool__(self) -> bool:
        """Return False, so that ``value or default`` gives the default."""
        return False


UNREAD = Unread()


def config_values(text: Any) -> dict[str, Any]:
    """Return the variables of a config's text without running it.

    Args:
        text: The text in ``meta['cfg']`` or ``meta['config_text']``.

    Returns:
        Values by name, with nested dicts and lists; an expression that is more than plain data is
        ``UNREAD``. The dict is empty if the text is no config.
    """
    try:
        statements = ast.parse(text).body if isinstance(text, str) else []
        return {
            target.id: _value(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
        given = [_value(argument) for argument in node.args]
        if not all(isinstance(value, dict) for value in given):
            return UNREAD
        named = {word.arg: _value(word.value) for word in node.keywords if word.arg}
        return {key: value for part in (*given, named) for key, value in part.items()}
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        return dict(zip(keys, map(_value, node.values)))
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return UNREAD


def _tensors(state: Any) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        return {}
    return {str(name): t for name, t in state.items() if isinstance(t, torch.Tensor)}


def _without_code(data: Mapping[str, Any]) -> dict[str, Any]:
    meta = data.get("meta")
    if isinstance(meta, Mapping) and "config" in meta:
        meta = {"config_text" if key == "config" else key: value for key, value in meta.items()}
        return {**data, "meta": meta}
    return dict(data)


def _has_stored_hash(path: Path, data: Mapping[str, Any]) -> bool:
    """Compare the weights with the hash in the file; return whether there is one."""
    meta = data.get("meta")
    stored = meta.get("weights_sha256") if isinstance(meta, Mapping) else None
    if not isinstance(stored, str):
        return False
    if weights_sha256(_tensors(data.get("state_dict"))) != stored:
        raise UserError(
            f"the weights of {path} are not those that were exported: their hash is not the "
            "weights_sha256 of its meta. The file was damaged or changed; export it again"
        )
    return True


_verified: set[Identity | None] = set()
_unverified: set[Path] = set()


def _say_unverified(path: Path) -> None:
    if path not in _unverified:
        _unverified.add(path)
        print_log(
            f"{path} holds no checksums, so changed bytes in it would not be noticed",
            logger="current",
            level=30,
        )


def _log_method(owner: Any, name: str) -> Any:
    """Replace ``getattr`` in a file; only the methods of a log buffer are given."""
    if owner is _Log and name in METHODS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"builtins.getattr of {name!r}")


@contextlib.contextmanager
def _logs_allowed() -> Iterator[None]:
    entries: list[Any] = [(value, name) for name, value in LOGS.items()]
    context: Any
    try:
        context = torch.serialization.safe_globals([*entries, (_log_method, "builtins.getattr")])
    except (TypeError, AttributeError):  # torch < 2.6 does not take names.
        context = contextlib.nullcontext()
    with context:
        yield


class StandIn:
    """An empty replacement for an object whose class is not read, which accepts everything."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """Return a stand-in for the result of a function."""
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

    def attribute(owner: Any, name: str) -> Any:
        try:
            return _log_method(owner, name)
        except pickle.UnpicklingError:
            return met.setdefault("builtins.getattr", type("getattr", (StandIn,), {}))()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{PYTHON_2.get(module, module)}.{name}"
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            if full in REAL or full in LOGS:
                return REAL.get(full) or LOGS[full]
            if full == "builtins.getattr":
                return attribute
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


def _refuse_untrusted(path: Path, stand_ins: tuple[str, ...], trust: bool, remedy: str) -> None:
    unknown = [name for name in stand_ins if name not in HARMLESS]
    if unknown and not trust:
        raise UntrustedError(
            f"{path} needs more than tensors and plain Python: {listed(unknown)}. "
            "Training frameworks pickle such objects (Lightning its hyper-parameters), but so does "
            f"a file that is to run code. {remedy}"
        )


def _refuse_what_is_no_checkpoint(path: Path, known: bool) -> bool:
    """Return whether the bytes match checksums of the file, checked now or before."""
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the checkpoint file in it")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes): download it again")
    if _is_safetensors(path):
        return False
    with open(path, "rb") as file:
        head = file.read(512)
    for start, problem in STARTS.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise UserError(f"{path} ({size:,} bytes) {problem}")
    if head.startswith(b"PK"):
        return _verify_zip(path, known)
    if tarfile.is_tarfile(path):
        raise UserError(f"{path} is a tar archive: unpack it first")
    elif not head.startswith(b"\x80"):
        raise UserError(f"{path} starts with {head[:8]!r}: this is not a PyTorch checkpoint")
    return False


def _verify_zip(path: Path, known: bool) -> bool:
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
                    f"{path} is a zip archive of other files ({listed(names)}), not "
                    "PyTorch's: if the checkpoint is in it, unpack it"
                )
            return known or verify_records(archive)
    except UserError:
        raise
    except Exception as error:  # Damaged archives may raise anything.
        raise UserError(
            f"{path} is damaged or cut off ({first_line(error)}): was its download complete?"
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
    except Exception as error:  # The Rust library raises its own type.
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): was its download complete?"
        ) from error
