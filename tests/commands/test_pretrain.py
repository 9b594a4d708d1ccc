"""One command pre-trains on a folder: it says its settings, writes them, resumes and exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from gersp_mm.backbones.load import load_backbone
from gersp_mm.commands import pretrain, train
from gersp_mm.engine import precision
from gersp_mm.engine.signals import StopRequest
from gersp_mm.registry import DATASETS
from tests.support.smoke import forget_runs, write_classes, write_images

ARGS = ["--arch", "resnet18", "--epochs", "1", "--batch-size", "4", "--size", "32"]
# The same network with an eighth of its channels.
SMALL = ["--cfg-options", "model.backbone.base_channels=8", "model.backbone.stem_channels=8",
         "model.neck.in_channels=64", "model.natural_head.in_channels=64",
         "train_dataloader.num_workers=0"]  # fmt: skip


@pytest.fixture
def folders(tmp_path, monkeypatch):
    write_images(tmp_path / "tiles", 9, size=(48, 48))
    write_classes(tmp_path / "photographs")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget_runs()


def test_a_folder_becomes_a_backbone_and_the_same_command_resumes(folders, capsys, monkeypatch):
    (folders / "cpuinfo").write_text("flags : amx_tile amx_bf16\n")
    monkeypatch.setattr(precision, "CPUINFO", folders / "cpuinfo")
    words = ["--images", "tiles", "--natural", "photographs", "--out", "out", *ARGS, *SMALL]
    pretrain.main(words)
    said = capsys.readouterr().out
    before = said[: said.index("first step: ")].splitlines()
    assert len(before) <= 15, before
    assert (
        "data      9 remote-sensing images" in said and "data      24 natural images of 3" in said
    )
    assert "1 of 2 steps" in said and "as asked for" in said and "one pass" in said
    cfg = Config.fromfile(folders / "out/resnet18.py")
    assert (
        cfg.model.queue_len == 8 and cfg.train_dataloader.sampler.epoch_length == "remote_sensing"
    )
    assert cfg.train_dataloader.dataset.rs_pipeline[0].preset == "overhead"
    exported = folders / "out/resnet18_backbone.pth"
    first = torch.load(exported, weights_only=True)
    assert "; precision bf16: this processor multiplies it (AMX)" in said
    assert cfg.optim_wrapper.type == "gersp_mm.BFloat16OptimWrapper"
    checkpoint = torch.load(folders / "out/epoch_1.pth", weights_only=False)
    assert first["meta"]["precision"] == checkpoint["meta"]["precision"] == "bf16"
    assert load_backbone(folders / "out").meta.method == "GeRSP"
    forget_runs()

    settings = folders / "out" / pretrain.SETTINGS
    older = json.loads(settings.read_text())
    assert older.pop("amp") == "auto"
    settings.write_text(json.dumps(older))  # as before there was --amp
    pretrain.main(words)  # finished: nothing is trained again
    assert first["meta"]["run_id"] == torch.load(exported, weights_only=True)["meta"]["run_id"]
    forget_runs()
    with pytest.raises(SystemExit) as stop:
        pretrain.main([*words, "--seed", "1"])
    assert stop.value.code == 2
    assert "holds a run with seed 0 instead of 1: repeat its options" in capsys.readouterr().err


def test_without_natural_images_the_choices_are_offered(folders, capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain.main(["--images", "tiles", *ARGS])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "--natural DIR with one sub-folder of images per class" in said
    assert "or --natural none" in said and not (folders / "work_dirs").exists()


def test_a_stopped_run_says_how_to_continue_by_the_command_that_started_it(
    folders, capsys, monkeypatch
):
    monkeypatch.setattr(StopRequest, "due", lambda self: True)  # asked for in the first step
    images = ["--images", "tiles", "--natural", "photographs", "--out", "out"]
    words = [*images, "--amp", "fp32", *ARGS, "--epochs", "9", *SMALL]
    config = ["out/resnet18.py", "--work-dir", "out"]
    written = None
    for start, arguments, how in [
        (pretrain, words, "again"),
        (pretrain, words, "again"),
        (pretrain, [*words, "--overwrite"], "without --overwrite"),
        (train, [*config, "--resume"], "again"),
        (train, [*config, "--resume", "out/iter_*.pth"],
         "with --resume alone, without the checkpoint,"),
        (train, [*config, "--overwrite"], "with --resume in place of --overwrite"),
        (train, [*config[:2], "other"], "with --resume"),
        (train, [*config, "--cfg-options", "resume=True"], "again"),
    ]:  # fmt: skip
        with pytest.raises(SystemExit):
            start.main([str(next(folders.glob(a))) if "*" in a else a for a in arguments])
        assert f"; run the same command {how} to continue" in capsys.readouterr().out
        written = written or Path(config[0]).read_text()
        assert Path(config[0]).read_text() == written and "resume=True" not in written
        forget_runs()


def test_contrastive_alone_has_no_second_branch(folders, capsys):
    words = ["--images", "tiles", "--natural", "none", *ARGS]
    pretrain.main([*words, "--amp", "fp32", "--dry-run"])
    cfg = Config.fromfile(folders / "work_dirs/pretrain/resnet18.py")
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert cfg.model.natural_head is None and cfg.train_dataloader.dataset.natural is None
    assert not list(folders.rglob("*.pth"))
    small = [option for option in SMALL[1:] if "natural_head" not in option]
    pretrain.main([*words, "--overwrite", "--cfg-options", *small])
    said = capsys.readouterr().out
    assert "natural images" not in said and "loss_ce" not in said and "loss_ct" in said
    assert (folders / "work_dirs/pretrain/resnet18_backbone.pth").is_file()


@pytest.mark.parametrize("arch, side", [("vit-small", 32), ("swin-tiny", 32), ("resnet101", 32)])
def test_every_architecture_gets_its_sizes(folders, arch, side):
    words = ["--images", "tiles", "--natural", "photographs", "--arch", arch, "--dry-run"]
    pretrain.main(words)
    (config,) = (folders / "work_dirs/pretrain").glob("*.py")
    model = Config.fromfile(config).model
    assert model.backbone.get("img_size", side) == side
    assert model.backbone.get("depth", 101) == 101
    assert model.neck.in_channels == model.natural_head.in_channels


def test_large_rasters_are_read_by_windows(folders, capsys):
    import numpy as np

    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(0, 3000, (4, 300, 300)).astype("uint16")
    with rasterio.open(folders / "scene.tif", "w", driver="GTiff", width=300, height=300, count=4,
                       dtype="uint16") as file:  # fmt: skip
        file.write(values)
    words = ["--images", "scene.tif", "--natural", "none", "--window", "64", "--bands", "3", "2",
             "1", "--dry-run"]  # fmt: skip
    pretrain.main([*words, "--arch", "resnet18"])
    said = capsys.readouterr().out
    cfg = Config.fromfile(folders / "work_dirs/pretrain/resnet18.py")
    source = cfg.train_dataloader.dataset.remote_sensing
    assert source.type == "gersp_mm.Scenes" and source.window == 64 and source.bands == (3, 2, 1)
    assert "334 of 3 steps" in said  # windows every 32 pixels


def test_files_that_are_named_one_by_one_are_listed(folders):
    names = sorted(str(path) for path in (folders / "tiles").glob("*.jpg"))[:4]
    pretrain.main(["--images", *names, "--natural", "none", "--dry-run", "--arch", "resnet18"])
    cfg = Config.fromfile(folders / "work_dirs/pretrain/resnet18.py")
    source = cfg.train_dataloader.dataset.remote_sensing
    assert source.type == "gersp_mm.MillionAID"
    dataset = DATASETS.build(dict(source))
    assert [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))] == names


@pytest.mark.parametrize(
    "words, message",
    [
        (["--images", "nowhere"], "--images nowhere: there is no such file or folder"),
        (["--images", "empty"], "holds no image"),
        (["--images", "tiles", "--natural", "gone"], "--natural gone: there is no such folder"),
        (["--images", "tiles", "--epochs", "0"], "--epochs must be at least 1"),
        (["--images", "tiles", "--natural", "tiles"], "tiles have no classes. Put the images"),
        (["--images", "tiles", "photographs"], "--images tiles: give one folder alone, or files"),
        (["--images", "tiles", "--out", "/proc/nope"], "--out /proc/nope cannot be written to"),
    ],
)
def test_bad_input_is_one_line(folders, capsys, words, message):
    (folders / "empty").mkdir()
    natural = [] if "--natural" in words else ["--natural", "none"]
    with pytest.raises(SystemExit) as stop:
        pretrain.main([*words, *natural])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def files_of(out: Path) -> dict[str, bytes]:
    files = (path for path in out.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files if path.suffix != ".lock"}


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        pretrain.main(words)
    forget_runs()
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_refused_start_changes_no_run_and_adopts_none(folders, capsys):
    write_images(folders / "others", 5, size=(48, 48))
    command = ["--natural", "none", *ARGS, *SMALL[:3], *SMALL[-1:], "model.neck.in_channels=64"]
    mine = ["--images", "tiles", "--out", "mine", *command]
    # Nothing was trained, so nothing has to be repeated.
    assert "nosuch.pth" in refused([*mine, "--from", "nosuch.pth"], capsys)
    pretrain.main(mine)
    forget_runs()
    before = files_of(folders / "mine")

    theirs = ["--images", "others", *command]
    assert "nosuch.pth" in refused(
        [*theirs, "--out", "mine", "--overwrite", "--from", "nosuch.pth"], capsys
    )
    assert "Choose another --out" in refused(
        [*theirs, "--out", "mine", "--overwrite", "--dry-run"], capsys
    )
    assert files_of(folders / "mine") == before

    (folders / "foreign").mkdir()
    (folders / "foreign/epoch_1.pth").write_bytes(before["epoch_1.pth"])
    for _ in range(2):
        said = refused([*theirs, "--out", "foreign"], capsys)
        assert "foreign holds checkpoints of another run. Add --overwrite" in said
    assert list(files_of(folders / "foreign")) == ["epoch_1.pth"]

    (folders / "mine/pretrain_settings.json").write_text('{"arch":')
    assert "pretrain_settings.json is damaged" in refused(mine, capsys)
    (folders / "mine/pretrain_settings.json").write_bytes(before["pretrain_settings.json"])
    (folders / "mine/epoch_1.pth").write_bytes(before["epoch_1.pth"][:1000])
    said = refused(mine, capsys)
    assert "epoch_1.pth" in said and "or add --overwrite" in said


def test_bands_of_photographs_are_said_to_have_no_effect(folders, capsys):
    words = ["--images", "tiles", "--natural", "none", "--dry-run", *ARGS]
    pretrain.main([*words, "--out", "a", "--bands", "4"])
    assert "--bands and --scale have no effect" in capsys.readouterr().out
    pretrain.main([*words, "--out", "b"])
    assert "--bands" not in capsys.readouterr().out


def test_paths_with_spaces_can_be_pasted(folders, capsys):
    pretrain.main(["--images", "tiles", "--natural", "none", "--dry-run", *ARGS, "--out", "a run"])
    assert "(gersp train 'a run/resnet18.py' repeats the run)" in capsys.readouterr().out
