"""The operators of mmcv that a model calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.ops.install import description
from gersp_mm.ops.needed import needed_and_missing
from gersp_mm.utils.errors import listed
from gersp_mm.utils.model import unwrap

FIX = (
    "Install an mmcv with compiled operators (bash tools/setup_env.sh --downstream --compile-ops), "
    "or choose a model without them."
)


def check_operators(runner: Any) -> Iterator[Finding]:
    """Refuse layers whose operator is not available, and warn of code that may call one."""
    surely, perhaps = needed_and_missing(unwrap(runner.model))
    where = "neither this mmcv, without compiled operators, nor gersp_mm.ops has"
    if surely:
        yield Finding("model", f"The model calls {listed(surely)} of mmcv, which {where}.", FIX)
    if perhaps:
        yield Finding(
            "model",
            f"Code of the model names {listed(perhaps)} of mmcv, which {where}. "
            "It stops with an error if it calls them.",
            FIX,
            "warning",
        )


def tell_operators(runner: Any) -> None:
    """Log which operators are in use, if the run has loaded any."""
    if "mmcv.ops" in sys.modules:
        runner.logger.info(description())
