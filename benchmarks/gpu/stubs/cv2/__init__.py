"""Stands in for OpenCV (60 MB) where it is not installed: importable, every use raises.

mmcv, mmengine and mmpretrain import cv2 when they are imported; what benchmarks/gpu runs of them
never calls it. bundle.py uses this folder only where there is no OpenCV.
"""

__version__ = "0.0.0+stub"
CONSTANTS = ("IMREAD", "INTER", "COLOR", "CAP", "BORDER")


class _Absent:
    def __init__(self, name):
        self._name = name

    def __call__(self, *args, **kwargs):
        raise ImportError(f"cv2.{self._name} was called, but OpenCV is not installed (stub)")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")

    # mmcv combines constants when it is imported
    def __or__(self, other):
        return 0

    __ror__ = __or__


def setNumThreads(number):
    """Do nothing."""


def setUseOptimized(on):
    """Do nothing."""


class _Ocl:
    @staticmethod
    def setUseOpenCL(on):
        pass


ocl = _Ocl()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return 0 if name.isupper() or name.startswith(CONSTANTS) else _Absent(name)
