"""Settings follow from the images and the machine, and each says why."""

from __future__ import annotations

import pytest

from gersp_mm.planning.defaults import ARCHITECTURES, Machine, decide, options_of, schedule
from gersp_mm.utils.errors import UserError

CPU, GPU = Machine(None, 2), Machine(24.0, 16)


def chosen(*args, **kwargs) -> dict:
    decisions = decide(*args, **kwargs)
    size = next(one.options["size"] for one in decisions if "size" in one.options)
    return {**options_of(decisions), "size": size}


@pytest.mark.parametrize(
    "count, side, machine, expected",
    [
        # a million large images on a GPU with 24 GB: the recipe, at one GPU's batch
        (990_848, 500, GPU, dict(size=224, batch=64, epochs=100, queue=65_536, temperature=0.07,
                                 momentum=0.996)),
        # two thousand tiles of 64 pixels on a CPU: a first look
        (2_043, 64, CPU, dict(size=48, batch=32, epochs=16, queue=2_016, temperature=0.1,
                              momentum=0.996)),
        # a handful: one batch holds them all, and so does the queue
        (12, 300, CPU, dict(size=224, batch=12, epochs=1000, queue=12, temperature=0.1,
                            momentum=0.996)),
    ],
)  # fmt: skip
def test_settings_follow_the_images(count, side, machine, expected):
    found = chosen(count, side, "resnet50", machine)
    assert expected == dict(
        size=found["size"],
        batch=found["train_dataloader.batch_size"],
        epochs=found["train_cfg.max_epochs"],
        queue=found["model.queue_len"],
        temperature=found["model.head.temperature"],
        momentum=found["model.teacher_momentum"],
    )
    batch = found["train_dataloader.batch_size"]
    assert found["model.queue_len"] % batch == 0 and found["model.queue_len"] <= count
    assert found["optim_wrapper.optimizer.lr"] == pytest.approx(0.06 * batch / 256)


def test_a_short_run_has_a_faster_teacher():
    found = chosen(2_043, 64, "resnet18", CPU, epochs=1)
    assert found["model.teacher_momentum"] == round(1 - 4 / 63, 4)
    assert chosen(40, 64, "resnet18", CPU, epochs=1)["model.teacher_momentum"] == 0.9


def test_what_is_asked_for_is_used_or_refused():
    found = chosen(100, 300, "resnet18", GPU, epochs=3, batch_size=20, size=96)
    assert (found["size"], found["train_dataloader.batch_size"]) == (96, 20)
    assert found["train_cfg.max_epochs"] == 3
    with pytest.raises(UserError, match="--batch-size 101: there are 100 images"):
        decide(100, 300, "resnet18", GPU, batch_size=101)
    with pytest.raises(UserError, match="--size 100: swin-tiny takes multiples of 32"):
        decide(100, 300, "swin-tiny", GPU, size=100)
    with pytest.raises(UserError, match="has 1 image"):
        decide(1, 300, "resnet18", GPU)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", [20, 65, 100, 223])
def test_crops_fit_the_network(arch, side):
    size = chosen(100, side, arch, GPU)["size"]
    assert size % (32 if arch == "swin-tiny" else 16) == 0 and size >= 32


@pytest.mark.parametrize("epochs, warm_up", [(1, 1), (2, 1), (10, 1), (100, 5)])
def test_the_schedule_ends_with_the_run(epochs, warm_up):
    parts = schedule(epochs, "resnet50")
    assert parts[0]["end"] == warm_up
    assert parts[-1]["end"] == epochs
    assert len(parts) == min(epochs, 2)
