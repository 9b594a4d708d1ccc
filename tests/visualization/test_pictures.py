"""Pictures of what pre-trainings see: maps, neighbours, projections, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gersp_mm.backbones import export_backbone
from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.build import build_network
from gersp_mm.backbones.named import Backbone, load_backbones
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.evaluation import EvalImages
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization import cam as cam_grid
from gersp_mm.visualization import neighbours
from gersp_mm.visualization import projection as tsne
from gersp_mm.visualization.features import class_names, follow_classes, labelled_images
from gersp_mm.visualization.panels import SERIES
from tests.support.commands import parse
from tests.support.smoke import write_classes, write_images

CONFIG = (
    "model = dict(type='gersp_mm.GeRSP', backbone=dict(type='ResNet', depth=18, base_channels=8, "
    "stem_channels=8, out_indices=(3,), init_cfg=dict(type='Pretrained', checkpoint='gone.pth')))"
)
TINY = dict(type="ResNet", depth=18, base_channels=8, stem_channels=8)


def write_backbone(path: Path, seed: int = 0, cfg: dict = TINY, **more) -> nn.Module:
    from mmpretrain.registry import MODELS

    torch.manual_seed(seed)
    network = MODELS.build(cfg)
    meta = dict(arch="ResNet-18", method="GeRSP", config=CONFIG, mean=RGB_MEAN, std=RGB_STD)
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    export_backbone(state, path, **{**meta, **more})
    network.eval()
    return network


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and three classes of six images, ``images``."""
    folder = tmp_path_factory.mktemp("pictures")
    write_classes(folder / "images", per_class=6)
    write_backbone(folder / "a.pth")
    write_backbone(folder / "b.pth", seed=1)
    return folder


def run(tool, data: Path, *arguments: object, out: Path, checkpoints: tuple = ("a.pth", "random")):
    files = [name if name == "random" else str(data / name) for name in checkpoints]
    common = ["--checkpoints", *files, "--size", "64", "--device", "cpu", "--out", str(out)]
    tool.run(parse(tool, [*map(str, arguments), *common]))
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


# ------------------------------------------------------------------------------------ backbones


def test_the_network_is_that_of_the_file(tmp_path: Path):
    path = tmp_path / "own.pth"
    network = write_backbone(path, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    own, drawn, again = load_backbones([f"mine={path}", "random", "more=random"], seed=3)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = [one.network(images)[-1] for one in (own, drawn, again)]
        assert torch.equal(outputs[0], network(images)[-1])
        assert torch.equal(load_backbones([str(path), "random"], seed=3)[1].network(images)[-1],
                           outputs[1])  # fmt: skip
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])  # another draw
    assert [one.name for one in (own, drawn, again)] == ["mine", "random", "more"]
    assert own.mean == drawn.mean == (1.0, 2.0, 3.0) and own.std == (4.0, 5.0, 6.0)
    assert not own.network.training


def test_a_standard_resnet_needs_no_config(tmp_path: Path):
    path = tmp_path / "imp.pth"
    network = write_backbone(path, cfg=dict(type="ResNet", depth=18), config=None, method="IMP")
    (loaded,) = load_backbones([str(path)])
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(image)[-1], network(image)[-1])
    assert loaded.name == "IMP"


def test_files_of_one_method_are_called_after_themselves(data: Path):
    names = [one.name for one in load_backbones([str(data / "a.pth"), str(data / "b.pth")])]
    assert names == ["a", "b"]
    with pytest.raises(UserError, match="two checkpoints are called x: name them"):
        load_backbones([f"x={data / 'a.pth'}", f"x={data / 'b.pth'}"])


def test_what_is_no_exported_backbone_is_refused(tmp_path: Path):
    path = tmp_path / "file.pth"
    with pytest.raises(UserError, match=f"there is no file {path}"):
        load_backbones([str(path)])
    torch.save(dict(state_dict={"conv1.weight": torch.zeros(1)}), path)
    with pytest.raises(UserError, match=r"no exported backbone.*gersp convert .*file\.pth"):
        load_backbones([str(path)])
    with pytest.raises(UserError, match="name at least one file"):
        load_backbones(["random"])
    write_backbone(path, arch="Foo-7", config=None)
    with pytest.raises(UserError, match=r"is of the arch Foo-7 and holds no config"):
        load_backbones([str(path)])
    write_backbone(path, config=CONFIG.replace("ResNet", "Foo"), arch="Foo-7")
    with pytest.raises(UserError, match=r"is of the arch Foo-7, which cannot be built"):
        load_backbones([str(path)])
    write_backbone(path, config=None)  # narrower than the standard one
    with pytest.raises(UserError, match=r"cannot be loaded .*file\.pth: .* another shape: conv1"):
        load_backbones([str(path)])


def test_what_is_not_finite_is_refused(data: Path, tmp_path: Path):
    content = torch.load(data / "a.pth", weights_only=True)
    content["state_dict"]["backbone.layer2.0.bn1.running_var"][3] = float("inf")
    del content["meta"]["weights_sha256"]
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"NaN or infinity \(backbone.layer2.0.bn1.running_var\)"):
        load_backbones([str(tmp_path / "file.pth")])


def test_the_architecture_alone_is_built_from_a_files_config():
    """A file could name others, which MMEngine would load, or modules, which it would import."""
    text = (
        "model = dict(backbone=dict(type='ResNet', depth=18, _scope_='evil', pretrained='a.pth', "
        "init_cfg=dict(type='Pretrained', checkpoint='b.pth'), plugins=[dict(cfg=dict("
        "type='ContextBlock', ratio=0.5, init_cfg=[dict(type='Pretrained', checkpoint='c.pth')]), "
        "stages=(True, False))], norm_cfg=dict(type='BN', checkpoint_path='d.pth')))"
    )
    found = Architecture.stored(dict(arch="ResNet-18", config_text=text), "file.pth").config
    plugin = dict(cfg=dict(type="ContextBlock", ratio=0.5), stages=(True, False))
    assert found == dict(type="ResNet", depth=18, plugins=[plugin], norm_cfg=dict(type="BN"))


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (dict(type="ImageClassifier", backbone=dict(type="ResNet", depth=18)), "a whole model, no"),
        (dict(type="Fetched"), "Fetched is no backbone of mmpretrain"),
        (dict(type="ResNet", depth=18, norm_cfg=dict(type="Fetched")), "Fetched is no backbone"),
        (  # which unpickles the file that it is given
            dict(type="ConvNeXt", act_cfg=dict(type="CLIPGenerator", tokenizer_path="a.pth")),
            "CLIPGenerator is no backbone",
        ),
        (dict(type="VQAGenerationHead", answer_list_path="a.pkl"), "Head is no backbone"),
        (dict(type="TIMMBackbone", model_name="hf-hub:a/b"), "model_name=hf-hub:a/b is an address"),
        (dict(type="ResNet", depth=18, init_cfg=dict(type="Pretrained")), "names other weights"),
    ],
)
def test_what_is_no_plain_architecture_is_not_built(arch, reason, monkeypatch):
    from mmpretrain.registry import MODELS

    fetch = dict(MODELS.module_dict, Fetched=lambda **_: pytest.fail("was called"))
    monkeypatch.setattr(MODELS, "_module_dict", fetch)
    with pytest.raises(UserError, match=reason):
        build_network(Architecture.parse(arch))


def test_no_code_of_a_file_is_run(tmp_path: Path):
    path, sign = tmp_path / "file.pth", tmp_path / "sign"
    for config in (
        f"open({str(sign)!r}, 'w'); {CONFIG}",
        f"model = dict(backbone=dict(type='os.system', command='touch {sign}'))",
        "model = dict(backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='os.mkdir')))",
    ):
        write_backbone(path, config=config)
        if "os." in config:
            with pytest.raises(UserError, match="names the type 'os"):
                load_backbones([str(path)])
        else:
            load_backbones([str(path)])
    assert not sign.exists()


# --------------------------------------------------------------------------------------- images


def test_lists_may_lie_below_the_folder_of_their_paths(tmp_path: Path):
    write_classes(tmp_path / "2750", classes=2, per_class=2)
    path = tmp_path / "splits" / "one" / "test.txt"
    path.parent.mkdir(parents=True)
    path.write_text("2750/class_0/000.jpg 0\n2750/class_1/001.jpg 1\n")
    images = labelled_images(path, 32)
    assert [label for _, label in images] == [0, 1]
    assert class_names(path, images) == {0: "class_0", 1: "class_1"}


def test_labels_follow_the_names_of_the_training_classes(tmp_path: Path):
    names = {0: "beach", 1: "forest", 2: "lake"}
    for name in ("forest", "lake"):
        write_images(tmp_path / name / "deeper", 1)
    images = EvalImages(tmp_path, 32)
    assert images.labels.tolist() == [0, 1]
    follow_classes(tmp_path, images, names, "train")
    assert images.labels.tolist() == [1, 2]
    write_images(tmp_path / "moon", 1)
    with pytest.raises(UserError, match=r"has images of moon, which is no class of train \(beach"):
        follow_classes(tmp_path, EvalImages(tmp_path, 32), names, "train")


def test_lists_of_mixed_folders_have_numbered_classes(tmp_path: Path):
    write_images(tmp_path / "all", 2)
    path = tmp_path / "list.txt"
    path.write_text("all/000.jpg 0\nall/001.jpg 4\n")
    images = labelled_images(path, 32)
    assert class_names(path, images) == {0: "class 0", 4: "class 4"}
    follow_classes(path, images, {0: "beach", 4: "lake"}, "train")
    assert images.labels.tolist() == [0, 4]


def test_bad_arguments(data: Path, tmp_path: Path):
    out = tmp_path / "x.png"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty.*expected one sub-folder of images per class"):
        run(tsne, data, tmp_path / "empty", out=out)
    with pytest.raises(UserError, match="--limit must be at least 1, got 0"):
        run(tsne, data, data / "images", "--limit", 0, out=out)
    with pytest.raises(UserError, match="a projection of 5 images says nothing"):
        run(tsne, data, data / "images", "--limit", 5, out=out)
    with pytest.raises(UserError, match="--k 19 is more than the 18 images"):
        run(neighbours, data, data / "images", "--train", data / "images", "--k", 19, out=out)
    with pytest.raises(UserError, match="--device abacus cannot be used"):
        args = [str(data / "images"), "--checkpoints", str(data / "a.pth"), "--device", "abacus"]
        tsne.run(parse(tsne, args))
    with pytest.raises(UserError, match=r"there is no image .*nowhere\.jpg"):
        run(cam_grid, data, tmp_path / "nowhere.jpg", "--train", data / "images", out=out)
    assert not out.exists()


# ------------------------------------------------------------------------------ activation maps


class Means(nn.Module):
    """A backbone without weights: its map is the mean colour of every 8×8 pixels."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (nn.functional.avg_pool2d(images, 8),)


def squares(colours: dict[int, tuple[int, int]]) -> torch.Tensor:
    """Return a black image 3×64×64 with a bright square of each channel at its place."""
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for channel, (y, x) in colours.items():
        image[channel, y : y + 16, x : x + 16] = 255
    return image


def probed(classes: int) -> object:
    """Return the colour network with a probe that tells the channels apart."""
    rng = np.random.default_rng(0)
    features, labels = [], []
    for number in range(60):
        y, x = rng.integers(0, 48, 2)
        label = number % classes
        features.append(squares({label: (y, x)}).float().mean((1, 2)) + 0.1 * torch.rand(3))
        labels.append(label)
    weight, bias, accuracy = cam_grid.fit_probe(torch.stack(features), torch.tensor(labels), 0)
    assert weight.shape == (classes, 3) and accuracy == 100
    backbone = Backbone("means", Means(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return cam_grid.Probed(backbone, weight, bias)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_maps_are_highest_where_the_class_is(classes: int, method: str):
    model = probed(classes)
    places = {0: (0, 48), 1: (40, 8)}
    image = squares(places)[None]
    for label, (y, x) in places.items():
        (found,) = cam_grid.activation_maps(model, image, [label], method)
        assert found.shape == (64, 64) and found.min() >= 0 and found.max() <= 1
        assert found[y + 4 : y + 12, x + 4 : x + 12].min() > 0.8
        other_y, other_x = places[1 - label]
        assert found[other_y : other_y + 16, other_x : other_x + 16].max() < 0.3


def test_grad_cam_of_a_probe_is_the_weighted_sum_of_channels():
    model = probed(3)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    (found,) = cam_grid.activation_maps(model, image, [2], "gradcam")
    channels = nn.functional.avg_pool2d(image.float(), 8)[0]
    expected = torch.einsum("c,chw->hw", model.classifier.weight[2], channels).relu().detach()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    centres = found[4::8, 4::8]
    assert np.corrcoef(centres.ravel(), expected.numpy().ravel())[0, 1] > 0.97


def test_a_map_is_told_by_its_own_class():
    maps = np.zeros((3, 2, 2))
    maps[:2] = 1
    seen = cam_grid.Seen(maps, [0, 1, 1], [0, 0, 0], [0.9, 0.8, 0.7], 50.0, 4, (2, 2))
    assert [cam_grid.caption(seen, row, {0: "SeaLake", 1: "Pasture"}) for row in range(3)] == [
        "sea lake 90 %",
        "predicted sea lake 80 %\nmap of pasture",
        "predicted sea lake 70 %\nmap of pasture\n(no evidence for it)",
    ]


def test_cam_grid_is_the_same_each_time(data: Path, tmp_path: Path, capsys):
    arguments = (data / "images", "--train", data / "images", "--rows", 2)
    first = run(cam_grid, data, *arguments, out=tmp_path / "1.png", checkpoints=("a.pth", "b.pth"))
    assert re.search(r"a: the probe's accuracy is [\d.]+ % on the fifth", capsys.readouterr().out)
    run(cam_grid, data, *arguments, out=tmp_path / "2.png", checkpoints=("a.pth", "b.pth"))
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert first.shape[0] > 300 and first.shape[1] > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "2.png"]


def test_files_are_drawn_without_a_known_class(data: Path, tmp_path: Path):
    known, unknown = data / "images" / "class_1" / "000.jpg", tmp_path / "my.jpg"
    shutil.copy(known, unknown)
    names = {0: "class_0", 1: "class_1", 2: "class_2"}
    images = cam_grid.shown_images([known, unknown], 64, 8, names, data / "images")
    assert images.labels.tolist() == [1, cam_grid.UNKNOWN]
    plain = cam_grid.shown_images([known.parent], 64, 4, names, data / "images")
    assert plain.labels.tolist() == [1] * 4
    run(cam_grid, data, unknown, "--train", data / "images", out=tmp_path / "cam.png")


def test_a_network_without_a_map_is_refused():
    backbone = Backbone("flat", nn.Flatten(), (0.0,) * 3, (1.0,) * 3)
    model = cam_grid.Probed(backbone, torch.zeros(2, 12), torch.zeros(2))
    with pytest.raises(UserError, match=r"flat: the backbone gives \(1, 12\), no map"):
        model(torch.zeros(1, 3, 2, 2))


def test_sizes_that_a_network_does_not_take_are_named(data: Path, tmp_path: Path):
    cfg = dict(
        type="SwinTransformer",
        arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
        img_size=224,
    )
    config = f"model = dict(backbone={cfg!r})"
    write_backbone(data / "swin.pth", cfg=cfg, config=config, arch="SwinTransformer", method="Swin")
    with pytest.raises(UserError, match=r"Swin fails on images of 64 pixels \(.*window size"):
        run(tsne, data, data / "images", out=tmp_path / "x.png", checkpoints=("swin.pth",))
    arguments = (data / "images", "--train", data / "images", "--rows", 1, "--size", 224)
    out = tmp_path / "cam.png"
    files = ["--checkpoints", str(data / "swin.pth"), "--out", str(out)]
    cam_grid.run(parse(cam_grid, [*map(str, arguments), *files, "--device", "cpu"]))
    assert out.is_file()


def test_missing_libraries_are_named(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match="pip install grad-cam"):
        cam_grid.library("gradcam")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn"):
        run(tsne, data, data / "images", "--method", "umap", out=data / "x.png")


def test_every_method_gives_a_map():
    model, image = probed(2), squares({0: (0, 48), 1: (40, 8)})[None]
    for method in cam_grid.METHODS:
        (found,) = cam_grid.activation_maps(model, image, [0], method)
        assert found.shape == (64, 64) and np.isfinite(found).all(), method
        assert found.min() >= 0 and found.max() <= 1, method


# ----------------------------------------------------------------------------------- neighbours


def test_nearest_are_those_of_highest_cosine():
    train, queries = torch.randn(50, 8) * torch.rand(50, 1) * 9, torch.randn(7, 8)
    cosine = torch.cosine_similarity(queries[:, None], train[None], dim=2)
    assert torch.equal(neighbours.nearest(train, queries, 4), cosine.argsort(1, True)[:, :4])


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(picture - wanted).sum(2) < 3).sum() > 100)


def test_frames_and_precision(data: Path, tmp_path: Path, capsys):
    same = (data / "images", "--train", data / "images", "--k", 1, "--rows", 3)
    picture = run(neighbours, data, *same, out=tmp_path / "same.png")
    text = capsys.readouterr().out
    assert "GeRSP: precision@1 100.0 %, 18 images" in text and "random: precision@1 100.0 %" in text
    assert has_colour(picture, neighbours.RIGHT) and not has_colour(picture, neighbours.WRONG)
    swapped = tmp_path / "swapped"  # the images of one class under the name of another
    for number in range(3):
        source = data / "images" / f"class_{number}"
        shutil.copytree(source, swapped / f"class_{(number + 1) % 3}")
    arguments = (swapped, *same[1:])
    picture = run(neighbours, data, *arguments, out=tmp_path / "swapped.png")
    assert "GeRSP: precision@1 0.0 %" in capsys.readouterr().out
    assert has_colour(picture, neighbours.WRONG) and not has_colour(picture, neighbours.RIGHT)


def test_neighbours_are_the_same_each_time(data: Path, tmp_path: Path):
    arguments = (data / "images", "--train", data / "images", "--k", 2, "--rows", 2)
    for name in ("1.png", "2.png"):
        run(neighbours, data, *arguments, out=tmp_path / name)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


# ---------------------------------------------------------------------------------- projections


def test_scores_of_separate_and_of_meaningless_classes():
    labels = torch.arange(60) % 3
    apart = torch.eye(3)[labels] + 0.01 * torch.randn(60, 3)
    knn, silhouette = tsne.scores(apart, labels, 0)
    assert knn == 100 and silhouette > 0.95
    knn, silhouette = tsne.scores(torch.randn(60, 3), labels, 0)
    assert knn < 70 and silhouette < 0.1
    assert np.isnan(tsne.scores(apart, torch.zeros(60, dtype=torch.long), 0)[1])


def test_projection_keeps_groups_together():
    labels = torch.arange(60) % 3
    features = torch.eye(8)[labels] + 0.05 * torch.randn(60, 8)
    points = torch.from_numpy(tsne.project(features, "tsne", 0))
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert points.shape == (60, 2) and (labels[nearest] == labels).all()
    assert np.array_equal(points, tsne.project(features, "tsne", 0))


def test_zero_has_no_sign(data: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(tsne, "scores", lambda *_: (50.0, -0.001))
    monkeypatch.setattr(tsne, "draw", lambda panels, *_: None)
    args = [str(data / "images"), "--checkpoints", str(data / "a.pth"), "--size", "64"]
    tsne.run(parse(tsne, [*args, "--out", tmp_path / "x.png"]))
    assert "silhouette 0.00," in capsys.readouterr().out


def test_one_png_of_several_checkpoints(data: Path, tmp_path: Path, capsys):
    files = ("a.pth", "b.pth", "random")
    for name in ("1.png", "2.png"):
        picture = run(tsne, data, data / "images", out=tmp_path / name, checkpoints=files)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert picture.shape[1] > picture.shape[0] > 300
    for colour in SERIES[:3]:  # the legend's
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - wanted).sum(2) < 6).sum() > 10
    assert re.search(r"a: kNN [\d.]+ %, silhouette -?[\d.]+, 18 images", capsys.readouterr().out)


def test_more_classes_than_colours(tmp_path: Path):
    count = 45
    points, labels = np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) % count
    names = {label: f"class_{label}" for label in range(count)}
    tsne.draw({"a\nkNN 1 %": points}, labels, names, "tsne", tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").width > 500
