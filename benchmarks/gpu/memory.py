"""Part 3: the prediction of ``gersp plan`` against the measured peak, on emulated cards."""

from __future__ import annotations
