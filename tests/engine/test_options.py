"""What is typed behind --cfg-options, and what a config makes of it."""

from __future__ import annotations

import sys

import pytest
from mmengine.config import Config

from gersp_mm.engine.config import read_config
from gersp_mm.engine.options import parse_options, parse_value, value_at
from gersp_mm.utils.errors import UserError
from tests.support.smoke import CONFIGS

VALUES = {
    "1": 1,
    "-2.5": -2.5,
    "1e-3": 0.001,
    "True": True,
    "false": False,
    "None": None,
    "none": "none",
    "a b": "a b",
    " a ": " a ",
    "/my data, 2024/images": "/my data, 2024/images",
    "1,2,3": "1,2,3",
    "'[1,2]'": [1, 2],
    '"a b"': "a b",
    "[1,2]": [1, 2],
    "(1,2)": (1, 2),
    "(1,)": (1,),
    "(1)": (1,),
    "[]": [],
    "()": (),
    "[1, 2,]": [1, 2],
    "[(1,2),(3,4)]": [(1, 2), (3, 4)],
    "[a b, /c d]": ["a b", "/c d"],
    "['a,b', \"c\"]": ["a,b", "c"],
    "[it's, b]": ["it's", "b"],
    "dict(a=1, b=[x,y])": dict(a=1, b=["x", "y"]),
    "{a: 1, 'b': {c: None}}": dict(a=1, b=dict(c=None)),
    "[dict(type='x.Hook', n=(1,2)), dict(type=y)]": [
        dict(type="x.Hook", n=(1, 2)),
        dict(type="y"),
    ],
    "{braces}": "{braces}",
    "dict(words)": "dict(words)",
    "(a)(b)": "(a)(b)",
    "[old] images": "[old] images",
    "images (1)": "images (1)",
    "[1,2": "[1,2",
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value_is_read_as_typed(text):
    value = parse_value(text)
    assert value == VALUES[text] and type(value) is type(VALUES[text])


HELD = dict(
    numbers=[1],
    pair=(8, 8),
    pairs=[(1, 2), (3, 4)],
    nested=[dict(scale=(1, 2))],
    data_root="data",
    name="x",
)
FITTED = {
    "numbers=1,2": [1, 2],
    "pair=[400,400]": (400, 400),
    "pair=400,400": (400, 400),
    "pair=5": 5,
    "pairs=[[5,6],[7,8],[9,10]]": [(5, 6), (7, 8), (9, 10)],
    "nested.0.scale=[3,4]": (3, 4),
    "data_root=2020": "2020",
    "data_root=None": None,
    "name=2020": 2020,
    "name=a,b": "a,b",
    "new=a,b": "a,b",
    "new=k=v": "k=v",
}


@pytest.mark.parametrize("option", FITTED)
def test_a_value_takes_the_shape_of_what_the_config_holds(option):
    ((_, value),) = parse_options([option], Config(HELD)).items()
    assert value == FITTED[option] and type(value) is type(FITTED[option])


@pytest.mark.parametrize(
    "option, text",
    [
        ("numbers=[1,2", r"numbers=\[1,2 does not close its brackets. Close them"),
        ("=3", "the option '=3' has no valid key. Write it as a.b=value."),
        ("a..b=1", "the option 'a..b=1' has no valid key"),
    ],
)
def test_what_cannot_be_read_is_said(option, text):
    with pytest.raises(UserError, match=text):
        parse_options([option], Config(HELD))


def read(name, *options):
    return read_config(CONFIGS / name, options)


def test_a_path_with_spaces_and_commas_arrives_whole():
    folder = "/my data, 2024/a (1)"
    key = "train_dataloader.dataset.remote_sensing.data_root"
    cfg, findings = read("pretrain/gersp_r50.py", f"{key}={folder}", "work_dir=a, b")
    assert not findings
    assert cfg.train_dataloader.dataset.remote_sensing.data_root == folder
    assert cfg.work_dir == "a, b"


def test_modules_that_an_option_names_are_imported(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text("marker = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    read("pretrain/gersp_r50.py", "custom_imports=dict(imports=['made_here'])")
    assert sys.modules["made_here"].marker == 1
    with pytest.raises(UserError, match=r"custom_imports=.*nowhere.* cannot be imported"):
        read("pretrain/gersp_r50.py", "custom_imports=dict(imports=['nowhere'])")


def test_a_list_takes_the_place_of_a_tuple_in_a_pipeline():
    option = "train_dataloader.dataset.pipeline.2.scale=[400,400]"
    cfg, _ = read("downstream/dior/faster-rcnn_r50_fpn_24e_dior.py", option)
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (400, 400)


def test_hooks_can_be_typed():
    option = "custom_hooks=[dict(type='gersp_mm.AlphaScheduleHook', start=1, end=0.1)]"
    cfg, _ = read("pretrain/gersp_r50.py", option)
    assert cfg.custom_hooks == [dict(type="gersp_mm.AlphaScheduleHook", start=1, end=0.1)]


def test_a_section_that_is_none_can_be_filled():
    cfg, _ = read(
        "downstream/loveda/psanet_r50-d8_80k_loveda.py", "optim_wrapper.clip_grad.max_norm=3"
    )
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=3)


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="default_hooks.knn_eval=None and default_hooks.knn_eval.k"):
        read(
            "pretrain/gersp_r18_demo.py",
            "default_hooks.knn_eval=None",
            "default_hooks.knn_eval.k=4",
        )


RS = "train_dataloader.dataset.remote_sensing"
VIEW = "train_dataloader.dataset.rs_pipeline.0"
OPTIMIZER = "optim_wrapper.optimizer"
DEMO = CONFIGS / "pretrain" / "gersp_r18_demo.py"


@pytest.mark.parametrize(
    ("typed", "section", "left", "words"),
    [
        ([f"{RS}.type=gersp_mm.Scenes", f"{RS}.window=256"], RS, {"ann_file"},
         "gersp_mm.MillionAID, that gersp_mm.Scenes does not take: ann_file='remote_sensing.txt'"),
        ([f"{VIEW}.type=mmpretrain.RandomCrop", f"{VIEW}.crop_size=9"], VIEW, None,
         "mmpretrain.RandomCrop does not take: preset='mocov2', size=48"),
        ([f"{RS}.type=gersp_mm.Scenes", f"{RS}.ann_file=a.txt"], RS, set(), None),
        ([f"{RS}.type=gersp_mm.MillionAID"], RS, set(), None),
        ([f"{OPTIMIZER}.type=AdamW"], OPTIMIZER, set(), None),  # is refused when it is built
        ([f"{RS}.type=gersp_mm.LabelledImages"], RS, set(), None),
    ],
)  # fmt: skip
def test_a_new_type_leaves_out_what_it_does_not_take(typed, section, left, words):
    before = value_at(Config.fromfile(DEMO), section)
    cfg, findings = read_config(DEMO, typed)
    assert left is None or before.keys() - value_at(cfg, section).keys() == left
    said = [finding.text for finding in findings if "loses the arguments" in finding.problem]
    assert (words in said[0] and len(said) == 1) if words else not said
    assert all(finding.severity == "warning" for finding in findings)
