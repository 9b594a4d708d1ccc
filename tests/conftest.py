"""Shared fixtures."""

from __future__ import annotations

import functools
import gc
import re
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.utils.dl_utils import collect_env

from gersp_mm.engine.signals import SIGNALS
from tests.support.downstream import write_all
from tests.support.forked import SUBPROCESS
from tests.support.smoke import forget_runs, write_pair


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs mmrotate in the family of OpenMMLab that has none."""
    if find_spec("mmrotate") is None:
        skip = pytest.mark.skip(reason="the original releases have no mmrotate that imports")
        for item in items:
            if re.search(
                r"mmrotate|rotated-|oriented-rcnn|\[dota/|hosts_(build|import)", item.name
            ):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def clean_process_state():
    """Give every test MMEngine's singletons and signals as a fresh process has them, one thread."""
    for number in SIGNALS:  # ignored where the tests themselves run in the background
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    forget_runs()
    init_default_scope("mmpretrain")
    called, words = sys.argv, [*sys.argv]
    yield
    sys.argv = called
    sys.argv[:] = words  # Commands write their names there, which help and messages read.
    forget_runs()


@pytest.fixture(autouse=True, scope="session")
def unformatted_configs() -> Iterator[None]:
    """MMEngine has every config formatted that it writes, which takes most of a small run."""
    with mock.patch("yapf.yapflib.yapf_api.FormatCode", lambda text, **options: (text, True)):
        yield


@pytest.fixture(autouse=True, scope="session")
def impatience() -> Iterator[None]:
    """Look at processes often; a loader collected as garbage waits 5 s for each of its, in vain."""
    loaders = mock.patch("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    with mock.patch("gersp_mm.engine.runs.POLL", 0.05), loaders:
        yield


@pytest.fixture(autouse=True, scope="session")
def environment_seen_once() -> Iterator[None]:
    """MMEngine asks compilers for their versions at the start of each run."""
    with mock.patch("mmengine.runner.runner.collect_env", functools.cache(collect_env)):
        yield


@pytest.fixture(autouse=True, scope="session")
def uncollected_garbage() -> Iterator[None]:
    """MMEngine runs the collector for each data set, through all that the tests have imported."""
    with mock.patch("mmengine.dataset.base_dataset.gc", SimpleNamespace(collect=lambda: 0)):
        yield


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage() -> None:
    """Let the collector pass over what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 remote-sensing-like images in ``rs/`` and three classes of 8 in ``natural/``."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def downstream_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of EuroSAT, RESISC45, DIOR, DOTA and LoveDA, prepared by the converters."""
    return write_all(tmp_path_factory.mktemp("downstream"))


@pytest.fixture
def forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands start their children as forks, see ``tests/support/forked.py``."""
    monkeypatch.setattr("gersp_mm.engine.runs.subprocess", SUBPROCESS)
