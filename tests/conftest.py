"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.visualization import Visualizer

from tests.smoke import write_pair


@pytest.fixture(autouse=True)
def clean_process_state():
    """Give every test MMEngine's singletons as a fresh process has them, and one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    singletons = (MMLogger, MessageHub, Visualizer, DefaultScope)
    for manager in singletons:
        manager._instance_dict.clear()
    init_default_scope("mmpretrain")
    yield
    for manager in singletons:
        manager._instance_dict.clear()


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 remote-sensing-like images in ``rs/`` and three classes of 8 in ``natural/``."""
    return write_pair(tmp_path_factory.mktemp("pair"))
