"""Pictures of predictions: which images, under which names, and what the label maps look like."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from mmengine.registry import HOOKS, DefaultScope
from PIL import Image

from gersp_mm.utils.errors import UserError
from gersp_mm.visualization.panels import RIGHT, WRONG
from gersp_mm.visualization.predictions import (
    RIGHT_PIXEL,
    UNLABELLED,
    WRONG_PIXEL,
    choose_pictures,
    distinct_colours,
    draw_classes,
    draw_label_maps,
)

CLASSES = ("water", "road", "roof")
PALETTE = [(0, 0, 255), (255, 255, 0), (255, 0, 0)]


def test_names_follow_the_folders_and_never_collide():
    paths = ["/d/a/1.jpg", "/d/b/1.jpg", "/d/b/1.png", "/d/b/sub/1.jpg", "/d/b/1.jpg"]
    names = choose_pictures(paths)
    assert list(names) == paths[:4]
    assert list(names.values()) == ["a/1", "b/1.jpg", "b/1.png", "b/sub/1"]
    assert choose_pictures(["/d/a/1.jpg", "/d/a/2.jpg"]) == {"/d/a/1.jpg": "1", "/d/a/2.jpg": "2"}
    assert choose_pictures([]) == {}


def test_a_limit_chooses_evenly_from_all_images():
    paths = [f"/d/class_{number // 25}/{number}.jpg" for number in range(100)]
    chosen = choose_pictures(paths, 4)
    assert list(chosen.values()) == [f"class_{n}/{25 * n}" for n in range(4)]
    assert len(choose_pictures(paths, 7)) == 7
    assert list(choose_pictures(paths, 1000)) == paths


def test_a_short_palette_is_completed_by_other_colours():
    colours = distinct_colours(40, PALETTE)
    assert colours[:3] == PALETTE
    assert len(set(colours)) == 40
    assert distinct_colours(2, PALETTE) == PALETTE[:2]
    assert all(isinstance(value, int) and 0 <= value <= 255 for c in colours for value in c)


def panels(figure) -> list[np.ndarray]:
    """The images of a figure's panels."""
    return [np.asarray(axis.get_images()[0].get_array()) for axis in figure.axes]


def test_panels_have_the_palettes_colours_in_the_labels_places():
    image = Image.new("RGB", (80, 60), (90, 90, 90))
    truth = np.full((60, 80), 255)
    truth[:, :20] = 2
    prediction = np.zeros((60, 80), int)
    prediction[:30] = 1
    prediction[30:45, :20] = 2
    figure = draw_label_maps(image, dict(truth=truth, prediction=prediction), CLASSES, PALETTE)
    shown, drawn_truth, drawn, errors = panels(figure)
    assert (shown == 90).all() and shown.shape == (60, 80, 3)
    assert (drawn_truth[:, :20] == PALETTE[2]).all() and (drawn_truth[:, 20:] == UNLABELLED).all()
    assert (drawn[:30] == PALETTE[1]).all() and (drawn[45:] == PALETTE[0]).all()
    assert (errors[:30, :20] == WRONG_PIXEL).all() and (errors[:, 20:] == UNLABELLED).all()
    assert [axis.get_title() for axis in figure.axes] == [
        "image", "truth", "prediction", "wrong: 75.0% of the pixels",
    ]  # fmt: skip
    assert (errors[30:45, :20] == RIGHT_PIXEL).all() and (errors[45:, :20] == WRONG_PIXEL).all()


def test_legend_says_the_share_of_every_class():
    labels = np.array([[0, 0, 0, 255]])
    image = Image.new("RGB", (4, 1))
    (legend,) = draw_label_maps(image, dict(prediction=labels), CLASSES, PALETTE).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "water: prediction 75.0%", "road: prediction 0.0%", "roof: prediction 0.0%",
        "not evaluated: prediction 25.0%",
    ]  # fmt: skip
    drawn = [np.array(patch.get_facecolor()[:3]) * 255 for patch in legend.get_patches()]
    assert np.allclose(drawn, [*PALETTE, UNLABELLED])


def test_heading_and_wrong_pixels_are_told():
    maps = dict(truth=np.array([[0, 0]]), prediction=np.array([[0, 1]]))
    heading = f"a/1, {'very_' * 20}long_config, w/iter_8.pth"
    figure = draw_label_maps(Image.new("RGB", (2, 1)), maps, CLASSES, PALETTE, heading)
    assert figure.get_suptitle().replace("\n", "").replace(" ", "") == heading.replace(" ", "")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[-2:] == ["right pixel", "wrong pixel"]
    figure.draw_without_rendering()
    frame = figure.bbox
    for text in (figure._suptitle, *figure.legends):
        extent = text.get_window_extent()
        assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1
        assert frame.y0 <= extent.y0 and extent.y1 <= frame.y1


@pytest.mark.parametrize(
    ("truth", "scores", "title", "colour"),
    [
        ([1], {1: 0.93}, "truth: sea lake\nprediction: sea lake 93% (right)", RIGHT),
        ([0], {1: 0.93}, "truth: forest\nprediction: sea lake 93% (wrong)", WRONG),
        ([0, 1], {1: 0.9, 0: 0.8},
         "truth: forest, sea lake\nprediction: sea lake 90%, forest 80% (right)", RIGHT),
        (None, {2: 0.5}, "prediction: class 2 50%", "black"),
    ],
)  # fmt: skip
def test_classes_stand_above_an_image_in_the_colour_of_right_or_wrong(truth, scores, title, colour):
    image = Image.new("RGB", (64, 64), (10, 20, 30))
    figure = draw_classes(image, truth, scores, ("Forest", "SeaLake"), "a/1, w/epoch_8.pth")
    (axis,) = figure.axes
    assert axis.get_title().replace("\n", " ") == title.replace("\n", " ")
    drawn = {to_hex(axis.title.get_color()), to_hex(axis.spines["left"].get_edgecolor())}
    assert drawn == {to_hex(colour)}
    assert not axis.texts and figure.get_suptitle() == "a/1, w/epoch_8.pth"
    assert (panels(figure)[0] == (10, 20, 30)).all()


def test_large_images_are_reduced_and_keep_hard_edges():
    labels = np.zeros((1500, 3000), int)
    labels[:, 1500:] = 1
    image = Image.new("RGB", (3000, 1500), (90, 90, 90))
    drawn = panels(draw_label_maps(image, dict(prediction=labels), CLASSES, PALETTE))[1]
    assert drawn.shape == (512, 1024, 3)
    colours = {tuple(map(int, colour)) for colour in np.unique(drawn.reshape(-1, 3), axis=0)}
    assert colours == {PALETTE[0], PALETTE[1]}


class Files:
    """A data set of image files."""

    metainfo = dict(classes=CLASSES, palette=PALETTE)

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [folder / f"{number % 2}" / f"{number // 2}.png" for number in range(count)]
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10), (90, 90, 90)).save(path)

    def __len__(self) -> int:
        return len(self.paths)

    def get_data_info(self, number: int) -> dict:
        return dict(img_path=str(self.paths[number]))


class Sample(SimpleNamespace):
    def __contains__(self, name: str) -> bool:
        return name in vars(self)


def run_hook(folder: Path, files: Files, **options) -> object:
    with DefaultScope.overwrite_default_scope("mmseg"):
        config = dict(type="gersp_mm.SegmentationPicturesHook", out_dir=str(folder), **options)
        hook = HOOKS.build(config)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=files))
    config = SimpleNamespace(filename="/c/psanet_loveda.py")
    runner = SimpleNamespace(test_loop=loop, cfg=config, _load_from="/w/loveda/iter_8.pth")
    hook.before_test_epoch(runner)
    for start in range(0, len(files), 2):  # batches of two; the last image again, as padding
        samples = [
            Sample(
                img_path=str(path),
                pred_sem_seg=SimpleNamespace(data=torch.full((1, 10, 20), start % 3)),
            )
            for path in [*files.paths[start : start + 2], files.paths[-1]][:2]
        ]
        hook.after_test_iter(runner, start // 2, dict(inputs=[None, None]), samples)
    return hook


def test_hook_writes_one_picture_an_image(tmp_path):
    hook = run_hook(tmp_path / "out", Files(tmp_path / "data", 5))
    written = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.*")
    )
    assert written == ["0/0.png", "0/1.png", "0/2.png", "1/0.png", "1/1.png"]
    assert hook.count == 5
    for name, label in (("0/0.png", 0), ("1/1.png", 2)):
        with Image.open(tmp_path / "out" / name) as picture:
            colours = np.array(picture.convert("RGB")).reshape(-1, 3)
            # Image and prediction are of one size; the legend has a little of every colour.
            assert (colours == PALETTE[label]).all(1).sum() > 0.9 * (colours == 90).all(1).sum()


def test_hook_draws_at_most_so_many(tmp_path):
    hook = run_hook(tmp_path / "out", Files(tmp_path / "data", 6), max_pictures=2)
    assert hook.count == 2
    assert len(list(tmp_path.glob("out/**/*.png"))) == 2


def test_no_pictures_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="max_pictures must be at least 1, got 0"):
        run_hook(tmp_path, Files(tmp_path, 1), max_pictures=0)
