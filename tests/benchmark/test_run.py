"""tools/benchmarks/run.py: plans and their errors, rows, resumption, and scikit-learn's word."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from gersp_mm import benchmark
from gersp_mm.backbones.exported import export_backbone
from gersp_mm.benchmark import data as benchmark_data
from gersp_mm.benchmark import finetuning, runner
from gersp_mm.benchmark.spec import KNN, FewShot, LinearProbe
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.datasets.splits import few_shot
from gersp_mm.evaluation import features as features_module
from gersp_mm.evaluation import linear_probe
from gersp_mm.evaluation.measurement import Measurement
from gersp_mm.results import Row, SplitRef, store
from gersp_mm.results.protocol import FrozenKNN, ImageInput
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import file_sha256
from tests.support.smoke import ROOT, write_classes, write_images

CONFIG = "configs/downstream/eurosat/finetune_r18_eurosat.py"
FIRST_ID = "93eb7c8f46304a33"
PLAN = """
checkpoints: {GeRSP: b.pth, random: null}
arch: resnet18
seeds: [0, 1]
datasets: {mine: {train: train, test: test, size: 32}}
tasks:
  - {protocol: knn, data: mine, k: 5}
  - {protocol: linear, data: mine, sweep: [1e-2, 1]}
  - {protocol: fewshot, data: mine, shots: [1, 2], draws: 2}
work_dir: work
"""


def plan_of(text: str = PLAN) -> benchmark.Plan:
    Path("plan.yml").write_text(text)
    return benchmark.read_plan("plan.yml")


def run(text: str = PLAN, out: str = "r.jsonl") -> tuple[int, list[Row]]:
    plan = plan_of(text)
    ran = benchmark.Runner(plan, Path(out), "cpu").run(benchmark.make_jobs(plan))
    return ran, store.read_rows(out)


def test_rows_cache_and_second_run(folder, capsys, monkeypatch):
    ran, found = run()
    # GeRSP: 1 kNN, 2 linear, 2 few-shot of 2 rows; random: 2 of each
    assert (ran, len(found)) == (11, 1 + 2 + 4 + 2 + 2 + 4)
    assert "[1/11] mine kNN, GeRSP: " in capsys.readouterr().out
    knn = [(r.pretraining, r.seed) for r in found if r.measured_by.kind == "knn"]
    assert sorted(knn, key=str) == [("GeRSP", None), ("random", 0), ("random", 1)]
    first = found[0]
    assert first.measured_by == FrozenKNN(k=5, temperature=0.07, image=ImageInput(size=32))
    assert first.split.sizes == dict(train=18, test=9) and len(first.split.sha256) == 8
    assert first.checkpoint_sha256 == file_sha256("b.pth") and first.model == "ResNet-18"
    assert first.settings.method == "GeRSP" and first.threads == torch.get_num_threads()
    random = [r for r in found if r.pretraining == "random"]
    assert {(r.checkpoint_sha256, r.settings.method) for r in random} == {(None, "random")}
    shots = [r.measured_by.shots for r in found if r.measured_by.kind == "fewshot"]
    assert sorted(shots) == 4 * [1] + 4 * [2] and {r.metric for r in found} == {"top-1"}
    assert len(list(Path("work/features").glob("*.pt"))) == 3  # GeRSP and two draws

    def extract(*args, **kwargs):
        raise AssertionError("features are in the cache")

    monkeypatch.setattr(runner, "extract_features", extract)
    assert run() == (0, found)
    assert run(out="again.jsonl")[0] == 11
    again = store.read_rows("again.jsonl")
    assert [r.value for r in again] == [r.value for r in found]
    ran, more = run(PLAN.replace("k: 5", "k: 3"))  # another protocol is another row
    assert ran == 3 and len(more) == len(found) + 3 and more[: len(found)] == found


def test_unreadable_images_are_left_out_said_and_noted_in_the_cache(folder, monkeypatch):
    said: list[str] = []
    for module in (runner, features_module):
        monkeypatch.setattr(module, "print_log", lambda text, **_: said.append(text))
    for part in ("train", "test"):
        Path(part).unlink()  # a link to what other tests read
    write_classes(Path("train"), 3, 6)
    for label in range(3):
        write_images(Path("test", f"class_{label}"), 3, seed=200 + label)
    Path("train/class_1/002.jpg").write_bytes(b"no image")
    Path("test/class_0/001.jpg").write_bytes(b"no image")
    ran, found = run()
    assert ran == 11 and len(said) == 6  # two parts of three networks
    assert said[0].startswith("1 of 18 images cannot be read and are left out of the evaluation: ")
    assert found[0].split.sizes == dict(train=18, test=9)
    # a new process, which finds the features in the cache: the same values, and the same is said
    said.clear()
    assert [row.value for row in run(out="again.jsonl")[1]] == [row.value for row in found]
    assert said[0] == (
        "mine: 1 of 18 train images could not be read when their features were made, and are left "
        "out: train/class_1/002.jpg"
    )
    # where such an image can be read by now, features are made anew
    monkeypatch.setattr(runner, "load_rgb", lambda path: None)
    said.clear()
    run(out="third.jsonl")
    assert said[0].startswith("1 of 18 images cannot be read")


def test_one_class_list_and_pictures_of_one_part_alone(folder):
    write_images(Path("other/class_1"), 3, seed=400)
    write_images(Path("other/class_2"), 3, seed=500)
    data = plan_of(PLAN.replace("test: test", "test: other")).data["mine"]
    assert [label for _, label in data.parts["test"]] == [1, 1, 1, 2, 2, 2]
    write_images(Path("other/airport"), 1, seed=600)
    with pytest.raises(UserError, match="classes that the train images lack: airport"):
        plan_of(PLAN.replace("test: test", "test: other"))
    with pytest.raises(UserError, match="data: train and train: 18 of 18 test images are also in"):
        plan_of(PLAN.replace("test: test", "test: train"))


def test_a_second_copy_of_a_known_data_set_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setenv("GERSP_DATA", "data")
    for number in range(21):
        images = write_images(Path(f"data/ucmerced/Images/c{number:02d}"), 3, number, size=(8, 8))
        for path in list(images.iterdir()):
            with Image.open(path) as image:
                image.save(path.with_suffix(".png"))
    text = PLAN.replace("data: mine, k", "data: ucmerced, k")
    with pytest.raises(UserError, match=r"ucmerced, every image is there twice, as .jpg and .png"):
        plan_of(text)
    for path in Path("data/ucmerced").rglob("*.png"):
        path.unlink()
    said: list[str] = []
    monkeypatch.setattr(benchmark_data, "print_log", lambda text, **_: said.append(text))
    plan_of(text)
    assert said[0].startswith("data: UC Merced has 2,100 images, data/ucmerced has 63: ")


def test_values_are_scikit_learns_on_the_same_features(folder):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    y = {part: np.arange(n) % 3 for part, n in dict(train=90, val=60, test=60).items()}
    x = {part: rng.normal(size=(len(v), 12)) + v[:, None] * 0.25 for part, v in y.items()}
    features = {p: (torch.from_numpy(x[p]).float(), torch.from_numpy(y[p])) for p in x}
    entries = {p: [(f"c{label}/{n}.jpg", int(label)) for n, label in enumerate(y[p])] for p in y}
    data = benchmark.Data("d", SplitRef(name="s"), entries, 32, 32)

    voters = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    ).fit(x["train"], y["train"])
    knn = KNN(data="d", k=7, temperature=0.1)
    expected = 100 * voters.score(x["test"], y["test"])
    assert benchmark.evaluate(knn, data, features, 0) == [pytest.approx(expected)]

    mean, std = x["train"].mean(0), x["train"].std(0)
    z = {part: (values - mean) / std for part, values in x.items()}
    sweep = [0.001, 0.1, 10.0]
    exact = dict(max_iter=1000, tol=1e-8)
    fits = {c: LogisticRegression(C=c, **exact).fit(z["train"], y["train"]) for c in sweep}
    scores = {c: 100 * fit.score(z["val"], y["val"]) for c, fit in fits.items()}
    result = linear_probe(*features["train"], *features["test"], sweep, val=features["val"])
    assert result.sweep == pytest.approx(scores)
    assert result.chosen_c == max(sweep, key=lambda c: (scores[c], -c))
    expected = 100 * fits[result.chosen_c].score(z["test"], y["test"])
    assert result.accuracy == pytest.approx(expected) and 40 < expected < 100
    linear = LinearProbe(data="d", sweep=sweep)
    assert benchmark.evaluate(linear, data, features, 3) == [result.accuracy]

    unit = {p: v / np.linalg.norm(v, axis=1, keepdims=True) for p, v in x.items()}
    accuracies = []
    for draw in (2, 3):  # seed 1 with two draws
        chosen = few_shot([p for p, _ in entries["train"]], y["train"].tolist(), 4, draw)
        few = LogisticRegression(max_iter=1000).fit(unit["train"][chosen], y["train"][chosen])
        accuracies.append(100 * few.score(unit["test"], y["test"]))
    task = FewShot(data="d", shots=[4], draws=2)
    assert benchmark.evaluate(task, data, features, 1) == [pytest.approx(np.mean(accuracies))]


def test_recorded_rows_count_as_done(folder):
    """What tells the rows of the example apart may not change: recorded ones would be made anew."""
    for part, count in (("train", 3), ("test", 2)):
        listed = Path("data/demo", f"sites_{part}.txt")
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{part}_{n}.jpg {n % 2}\n" for n in range(count)))
        for label, number in itertools.product(range(2), range(count)):
            image = Path(f"data/NWPU-RESISC12/{part}/c{label}/{number}.jpg")
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(bytes(10 + number))  # listed, not opened
            (listed.parent / f"{part}_{number}.jpg").write_bytes(bytes(20 + number))
    weights = Path("work_dirs/quickstart/gersp_r18_demo_backbone.pth")
    weights.parent.mkdir(parents=True)
    weights.symlink_to(folder / "b.pth")
    jobs = benchmark.make_jobs(benchmark.read_plan(ROOT / "tools/benchmarks/example.yml"))

    def known(identity):  # of other images and weights
        hashed = "a hash" if identity.checkpoint_sha256 else None
        return identity.model_copy(update=dict(split=None, checkpoint_sha256=hashed))

    found = {known(identity) for job in jobs for identity in job.identities}
    recorded = store.read_rows(ROOT / "results/frozen_small.jsonl")
    assert len(found) == 56 and found == {known(row.identity) for row in recorded}
    first = next(job for job in jobs if job.file is None)
    assert str(first.identities[0].split) == "own split e925dfb8 (6 train, 4 test)"
    assert first.id == FIRST_ID  # names the lock and the files of a training


def test_seeds_of_pretraining_pair_and_other_images_are_another_split(folder):
    Path("c.pth").write_bytes(Path("b.pth").read_bytes())
    seeded = PLAN.replace("GeRSP: b.pth", "GeRSP: {4: b.pth, 7: c.pth}")
    jobs = benchmark.make_jobs(plan_of(seeded), only=["GeRSP"])
    assert [job.seed for job in jobs] == [4, 4, 4, 7, 7, 7]
    listed = "".join(f"train/class_{n}/00{i}.jpg {n}\n" for n in range(3) for i in range(4))
    Path("few.txt").write_text(listed)
    other = benchmark.make_jobs(plan_of(PLAN.replace("train: train", "train: few.txt")))[0]
    assert other.identities[0].split.sizes == dict(train=12, test=9)


def test_rows_of_an_older_version_are_said_not_to_count(folder, capsys):
    Path("r.jsonl").write_bytes((ROOT / "tests/fixtures/rows_0.1.0.jsonl").read_bytes())
    knn = PLAN[: PLAN.index("  - {protocol: linear")]
    ran, found = run(f"{knn}work_dir: work\n")
    assert (ran, len(found)) == (3, 21 + 3)
    said = "r.jsonl: 21 rows of an older version are ignored\n"
    assert capsys.readouterr().out.count(said) == 1


def test_known_data_sets_and_their_splits(folder, monkeypatch):
    monkeypatch.setenv("GERSP_DATA", "data")
    for number in range(21):
        write_images(Path("data/ucmerced/Images") / f"c{number:02d}", 10, number, size=(8, 8))
    splits = Path("data/eurosat/splits/eurosat-gersp-1")
    splits.mkdir(parents=True)
    for part in ("train", "val", "test"):
        (splits / f"{part}.txt").write_text(f"2750/Forest/{part}.jpg 1\n2750/River/{part}.jpg 8\n")
    plan = plan_of(PLAN.replace("data: mine, k", "data: [eurosat, ucmerced], k"))
    data = plan.data["ucmerced"]
    assert {part: len(entries) for part, entries in data.parts.items()} == dict(
        train=147, val=21, test=42
    )
    assert re.match(r"ucmerced-gersp-1 \w{8} \(147 train, 21 val, 42 test\)", str(data.split))
    assert plan.data["eurosat"].parts["val"][1] == ("data/eurosat/2750/River/val.jpg", 8)
    first, *_ = benchmark.make_jobs(plan)[0].identities
    assert first.dataset == "EuroSAT"
    assert first.sentence.endswith("(k = 5, T = 0.07), 64 px, eurosat-gersp-1, train to test")
    config = Config.fromfile(ROOT / "configs/downstream/eurosat/knn_r50_eurosat.py")
    (column,) = Measurement(config, "knn_r50_eurosat.py").columns.values()
    assert column.split == first.split and column.measured_by.image == first.measured_by.image


ERRORS = [
    ("arch: resnet18", "arch: vgg", "arch: must be one of resnet18, resnet34"),
    ("arch: resnet18\n", "", "arch is missing, but random weights"),
    ("seeds: [0, 1]", "seeds: [0, 0]", r"seeds: must be a list of different numbers, got \[0, 0\]"),
    ("seeds: [0, 1]", "seeds: [-1]", "seed 1 must be greater than or equal to 0, got -1"),
    ("seeds:", "seed:", "plan.yml: seed is no field. Did you mean seeds?"),
    ("GeRSP: b.pth", "GeRSP: c.pth", "checkpoints.GeRSP: there is no file c.pth"),
    ("GeRSP: b.pth", "GeRSP: [b.pth]", r"checkpoints.GeRSP: must be a file, null .*\['b.pth'\]"),
    ("GeRSP: b.pth", "GeRSP: {0: null}", "checkpoints.GeRSP: must be a file, null"),
    ("random: null", "GeRSP: null", "plan.yml, line 2: the key 'GeRSP' appears twice. Remove one"),
    ("protocol: knn", "protocol: svm", "task 1.protocol must be one of knn, .* got 'svm'"),
    ("protocol: knn, ", "", "task 1.protocol is missing"),
    ("k: 5", "k: 0", "task 1.k must be greater than or equal to 1, got 0"),
    ("k: 5", "k: true", "task 1.k must be a valid integer, got True"),
    ("k: 5", "temprature: 5", "task 1.temprature is no field. Did you mean temperature?"),
    ("k: 5", "n: 5", "task 1.n is no field. The fields are data, protocol, k, temperature"),
    ("k: 5", "temperature: hot", "task 1.temperature must be a valid number, .* got 'hot'"),
    (
        "data: mine, k",
        "data: your, k",
        r"task 1 \(knn\): data must be one of eurosat, .*, mine, or",
    ),
    ("sweep: [1e-2, 1]", "sweep: [-1]", "task 2.sweep 1 must be greater than 0, got -1"),
    ("shots: [1, 2]", "shots: 1", "task 3.shots must be a valid list, got 1"),
    ("size: 32", "size: big", "datasets.mine.size must be a valid integer"),
    ("size: 32", "size: 64, resize: 32", r"mine: resize must be at least size \(64\), got 32"),
    ("train: train", "train: ''", "datasets.mine.train must not be empty"),
    (
        PLAN[PLAN.index("{train") : PLAN.index("}\ntasks")],
        "4",
        "datasets.mine must be the name",
    ),
    ("data: mine, k", "data: 3, k", "task 1.data 1 must be the name of a data set, or {name, .* 3"),
    ("data: mine, k", "data: [], k", r"task 1.data must not be empty, got \[\]"),
    ("sweep: [1e-2, 1]", "sweep: [true]", "task 2.sweep 1: must be a number, got True"),
    ("random: null", "1: null", "plan.yml: checkpoints: the key 1 must be a valid string"),
    (PLAN, "", r"plan.yml: must be a mapping \(name: value\), got None"),
    ("train: train", "train: none", "data: train: none does not exist"),
    ("mine: {", "eurosat: {", "datasets.eurosat is the name of a known data set"),
    ("data: mine, k: 5", "data: aid", "aid is expected in .*data/aid, which does not exist"),
    ("seeds: [0, 1]", "seeds: [0, 1", "plan.yml is not valid YAML"),
    ("work_dir: work", "work_dir: 3", "work_dir must be a valid string, got 3"),
]


@pytest.mark.parametrize(("old", "new", "text"), ERRORS)
def test_wrong_fields_are_named(old, new, text, folder):
    with pytest.raises(UserError, match=text):
        plan_of(PLAN.replace(old, new, 1))


def test_all_errors_of_a_file_are_told_at_once(folder):
    wrong = PLAN.replace("k: 5", "k: 0").replace("b.pth", "c.pth").replace("draws", "draw")
    with pytest.raises(UserError) as error:
        plan_of(wrong)
    assert str(error.value).splitlines() == [
        "plan.yml: checkpoints.GeRSP: there is no file c.pth",
        "plan.yml: task 1.k must be greater than or equal to 1, got 0",
        "plan.yml: task 3.draw is no field. Did you mean draws?",
    ]
    with pytest.raises(UserError) as error:  # of data and configs
        plan_of(PLAN.replace("data: mine, k", "data: your, k").replace("arch: resnet18\n", ""))
    assert [line.split(":")[1] for line in str(error.value).splitlines()] == [
        " arch is missing, but random weights (null) need it. Write arch", " task 1 (knn)"
    ]  # fmt: skip


def test_what_shows_only_with_the_jobs(folder):
    with pytest.raises(UserError, match="--only MoCo: plan.yml has GeRSP, random"):
        benchmark.make_jobs(plan_of(), only=["MoCo"])
    twice = PLAN.replace("protocol: linear, data: mine, sweep: [1e-2, 1]",
                         "protocol: knn, data: mine, k: 5")  # fmt: skip
    with pytest.raises(UserError, match="two tasks give the same row"):
        benchmark.make_jobs(plan_of(twice))
    torch.save(dict(state_dict={}), "c.pth")
    with pytest.raises(UserError, match=r"c\.pth holds no tensors; it has nothing"):
        benchmark.make_jobs(plan_of(PLAN.replace("b.pth", "c.pth")))
    scale = dict(mean=list(RGB_MEAN), std=list(RGB_STD))
    for arch, text in (
        ("Foo-7", r"plan\.yml: c\.pth is not a ResNet. Give its backbone as arch: {type"),
        ("ResNet-18", r"ResNet-18 cannot be loaded from c\.pth: 100 missing: conv1\.weight"),
    ):
        export_backbone({"backbone.x": torch.zeros(1)}, "c.pth", arch, "GeRSP", **scale)
        with pytest.raises(UserError, match=text):
            run(PLAN.replace("b.pth", "c.pth"))


def test_weights_that_are_not_finite_give_no_row(folder):
    content = torch.load("b.pth", weights_only=True)
    content["state_dict"]["backbone.layer1.0.conv1.weight"][0] = float("nan")
    del content["meta"]["weights_sha256"]
    torch.save(content, "c.pth")
    with pytest.raises(UserError, match=r"c\.pth: 1 tensor holds NaN .*layer1\.0\.conv1\.weight"):
        run(PLAN.replace("b.pth", "c.pth"))
    assert not list(folder.rglob("results.jsonl"))


FINETUNE = f"""
checkpoints: {{GeRSP: b.pth, random: null}}
arch: resnet18
seeds: [3]
tasks: [{{protocol: finetune, config: {CONFIG}, cfg_options: {{train_cfg.max_epochs: 1}}}}]
work_dir: work
"""


def test_fine_tuning_trains_tests_and_goes_on(folder, monkeypatch):
    calls = []

    def follow(title, command, log, length=None, env=None):
        tool, arguments, where = Path(command[1]).name, command[2:], log.parent
        calls.append((tool, arguments))
        where.mkdir(parents=True, exist_ok=True)
        if tool == "train.py":
            content = dict(state_dict={}, meta=dict(epoch=1, iter=1))
            torch.save(content, where / "epoch_1.pth")
            (where / "last_checkpoint").write_text(str(where / "epoch_1.pth"))
        elif len(calls) == 2:
            raise UserError("killed")
        else:
            job = benchmark.make_jobs(benchmark.read_plan("plan.yml"))[0]
            origin = dict(commit=None, hardware="h", versions={}, seconds=1.0)
            made = Row(**dict(job.identities[0]), value=50.0 + len(calls), **origin)
            store.append_rows(arguments[arguments.index("--results") + 1], [made])
        return argparse.Namespace(follow=lambda: None)

    monkeypatch.setattr(finetuning, "ChildRun", follow)
    with pytest.raises(UserError, match="killed"):
        run(FINETUNE)
    ran, found = run(FINETUNE)
    assert [tool for tool, _ in calls] == ["train.py", "test.py", "test.py", "train.py", "test.py"]
    assert {"--resume", "auto"} <= set(calls[0][1]) and "train_cfg.max_epochs=1" in calls[0][1]
    assert {"pretrained=b.pth", "randomness.seed=3"} <= set(calls[0][1])
    assert {"pretrained=None", "randomness.seed=3"} <= set(calls[3][1])
    assert ran == 2
    assert [(r.pretraining, r.seed, r.value) for r in found] == [
        ("GeRSP", 3, 53.0), ("random", 3, 55.0),
    ]  # fmt: skip
    assert found[0].config == CONFIG and found[0].overrides == {}
    assert found[0].protocol == "Fine-tuning, 1 epoch, 64 px, eurosat-gersp-1, train to test"
    assert [r.settings.method for r in found] == ["GeRSP", "random"]
    assert run(FINETUNE)[0] == 0


def test_fine_tuning_options_are_checked(folder):
    for change, text in (
        ("pretrained: x", "cfg_options: pretrained is set by checkpoints and seeds"),
        ("model: {a: 1}", "Write model.name: value"),
    ):
        with pytest.raises(UserError, match=text):
            plan_of(FINETUNE.replace("train_cfg.max_epochs: 1", change))
    with pytest.raises(UserError, match="task 1.config must not be empty"):
        plan_of(FINETUNE.replace(CONFIG, "''"))
    with pytest.raises(UserError, match=r"task 1 \(finetune\): config none.py cannot be read"):
        plan_of(FINETUNE.replace(CONFIG, "none.py"))
    frozen = CONFIG.replace("finetune_r18", "knn_r50")
    with pytest.raises(UserError, match="trains nothing. Use protocol knn or fewshot"):
        plan_of(FINETUNE.replace(CONFIG, frozen))


def test_a_plan_may_merge_and_has_to_be_utf8(folder):
    shared = PLAN.replace(
        "{protocol: knn, data: mine, k: 5}", "&knn {protocol: knn, data: mine, k: 5}"
    ).replace("work_dir", "  - {<<: *knn, k: 3}\nwork_dir")
    found = [task.spec.k for task in plan_of(shared).tasks if task.spec.protocol == "knn"]
    assert found == [5, 3]
    Path("plan.yml").write_bytes(PLAN.encode().replace(b"mine", b"m\xefne"))
    with pytest.raises(UserError, match=r"plan\.yml is not valid YAML: 'utf-8' codec"):
        benchmark.read_plan("plan.yml")
