import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys

import pytest

from gersp_mm.ops import install
from gersp_mm.ops.needed import needed_and_missing
from gersp_mm.ops.operators import OPERATORS
from tests.ops.support import beside_compiled
from tests.support.smoke import ROOT

# Before all other finders ours hides the compiled module, if there is one.
WITHOUT = """
import sys
from gersp_mm.ops import install
sys.meta_path.insert(0, install._Finder())
import logging
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
"""


def run(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT + code]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_our_operators_answer_where_there_are_no_compiled_ones():
    said = run("""
import gersp_mm, torch
assert "torch.nn" in sys.modules and "mmcv._ext" not in sys.modules
from mmcv.ops import CARAFEPack, MaskedConv2d, RoIAlign, nms
from gersp_mm.ops.needed import needed_and_missing
assert not install.is_compiled()
boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9.0], [20, 20, 30, 30]])
print("kept", nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist())
class Held:
    def use(self):
        return MaskedConv2d
class Model(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers, self.held = torch.nn.ModuleList(layers), [Held()]
print(needed_and_missing(Model(RoIAlign(7))))
print(needed_and_missing(Model(CARAFEPack(4, 2))))
try:
    CARAFEPack(4, 2)(torch.zeros(1, 4, 3, 3))
except NotImplementedError as error:
    print(error)
""")  # fmt: skip
    assert said.splitlines() == [
        "mmcv's operators are those of gersp_mm.ops, in torch and torchvision: this mmcv has no "
        "compiled ones (mmcv._ext)",
        "kept [0, 2]",
        "([], ['masked_col2im_forward', 'masked_im2col_forward'])",
        "(['carafe_backward', 'carafe_forward'], "
        "['masked_col2im_forward', 'masked_im2col_forward'])",
        "carafe_forward needs mmcv with compiled operators, which this Python does not have: "
        "gersp_mm.ops has no torch version of it. Install a wheel of mmcv that has mmcv._ext.",
    ]


@beside_compiled
def test_compiled_operators_are_left_alone():
    import mmcv.ops.nms as nms  # noqa: F401
    from mmcv.ops import CARAFEPack

    install.install()
    assert sum(isinstance(finder, install._Finder) for finder in sys.meta_path) == 1
    spec = importlib.util.find_spec(install.NAME)
    assert spec is not None and spec.origin.endswith((".so", ".pyd"))
    assert sys.modules["mmcv.ops.nms"].ext_module is importlib.import_module(install.NAME)
    assert install.description() == "mmcv's operators are the compiled ones (mmcv._ext)"
    assert needed_and_missing(CARAFEPack(4, 2)) == ([], [])


def test_compiled_operators_that_do_not_load_are_named_and_not_replaced(tmp_path):
    (tmp_path / f"_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_text("cut off")
    spec = install._CompiledFinder().find_spec(install.NAME, [str(tmp_path)])
    assert spec is not None
    with pytest.raises(ImportError) as caught:
        importlib.util.module_from_spec(spec)
    said = str(caught.value)
    assert said.startswith(f"The compiled operators of this mmcv do not load: {tmp_path}")
    assert "made for another torch. Install an mmcv for this torch, or one without" in said
    assert install._CompiledFinder().find_spec(install.NAME, ["/nowhere"]) is None
    assert install._CompiledFinder().find_spec("mmcv.cnn", [str(tmp_path)]) is None


@beside_compiled
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_is_one_of_mmcv(name):
    assert hasattr(importlib.import_module(install.NAME), name)


def test_a_run_whose_layer_has_no_operator_is_refused(monkeypatch):
    from types import SimpleNamespace

    from gersp_mm.engine.preflight import operators

    monkeypatch.setattr(operators, "needed_and_missing", lambda model: (["a", "b"], ["c"]))
    runner = SimpleNamespace(model=SimpleNamespace())
    first, second = operators.check_operators(runner)
    assert first.severity == "error" and second.severity == "warning"
    assert first.text == (
        "The model calls a, b of mmcv, which neither this mmcv, without compiled operators, nor "
        "gersp_mm.ops has. Install an mmcv with compiled operators (bash tools/setup_env.sh "
        "--downstream --compile-ops), or choose a model without them."
    )
    assert "names c of mmcv" in second.text
