"""Finding our types from any host's scope, with nothing imported that is not needed."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope, Registry

from gersp_mm import registry

OURS = [value for value in vars(registry).values() if isinstance(value, Registry)]
OURS = [r for r in OURS if r.scope == "gersp_mm"]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("one", OURS, ids=lambda r: r.name)
def test_locations_are_real_modules_and_register_something(one):
    for location in one._locations:
        importlib.import_module(location)
    assert len(one.module_dict) > 0


def test_a_type_of_ours_is_not_found_without_its_scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        assert ROOT_MODELS.get("gersp_mm.GeRSP") is not None
        assert ROOT_MODELS.get("GeRSP") is None


def test_everything_of_ours_works_alone_and_changes_nothing_for_others():
    """Without other hosts and compiled operators, from the first look into a registry on.

    ``test_hosts_import_in_the_opposite_order`` looks from the scopes of the other hosts.
    """
    out = run_python(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in {'mmdet', 'mmseg', 'mmrotate', 'mmcv._ext'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from mmengine.runner.checkpoint import CheckpointLoader\n"
        "before = dict(CheckpointLoader._schemes)\n"
        "from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope, init_default_scope\n"
        "for scope in ('mmengine', 'mmpretrain'):\n"
        "    with DefaultScope.overwrite_default_scope(scope):\n"
        "        hook = HOOKS.build(dict(type='gersp_mm.TeacherUpdateHook'))\n"
        "        print('found', scope, type(hook).__name__,\n"
        "              MODELS.get('gersp_mm.GeRSP').__name__,\n"
        "              DATASETS.get('gersp_mm.PairedDataset').__name__)\n"
        "import gersp_mm, gersp_mm.engine.launch, mmpretrain.datasets\n"
        "for name in gersp_mm.__all__: getattr(gersp_mm, name)\n"
        "assert dict(CheckpointLoader._schemes) == before\n"
        "from tests.support.models import batch, tiny_gersp, total\n"
        "init_default_scope('mmpretrain')\n"
        "total(tiny_gersp().loss(**batch())).backward()\n"
    )
    found = [line.split()[1:] for line in out.splitlines() if line.startswith("found")]
    names = ["TeacherUpdateHook", "GeRSP", "PairedDataset"]
    assert found == [[scope, *names] for scope in ("mmengine", "mmpretrain")]
    assert "OneDL" not in out


@pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="mmpretrain asks for pycocotools too"
)
def test_mmpretrain_is_importable_next_to_transformers_5(tmp_path):
    package = tmp_path / "transformers-5.24.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 5.24.0\n"
    )
    # A package without any name, as mmpretrain sees one whose names were removed.
    (tmp_path / "transformers.py").write_text("")
    out = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.modules['mmdet'] = None  # which mmpretrain imports if it is there\n"
        "import gersp_mm\n"
        "assert 'mmpretrain' not in sys.modules\n"
        "import mmpretrain.models\n"
        "print('imported')\n"
    )
    assert out.split()[-1] == "imported"
