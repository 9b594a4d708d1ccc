from __future__ import annotations

import math

import pytest
import torch
from mmengine.hooks import Hook

from gersp_mm.engine.hooks import TeacherUpdateHook
from gersp_mm.utils.errors import UserError
from tests.support.runs import demo_config, train


class Recorder(Hook):
    """Notes each optimizer step and each teacher update, in order, with the update's momentum."""

    priority = "VERY_HIGH"

    def before_train(self, runner):
        self.events = []
        model, optimizer = runner.model, runner.optim_wrapper.optimizer
        update, step = model.update_teacher, optimizer.step

        def noted_update(momentum=None):
            before = [p.clone() for p in model.teacher.parameters()]
            student = [*model.backbone.parameters(), *model.neck.parameters()]
            update(momentum)
            for old, own, new in zip(before, model.teacher.parameters(), student):
                torch.testing.assert_close(own, momentum * old + (1 - momentum) * new)
            self.events.append(("teacher", momentum))

        def noted_step(*args, **kwargs):
            self.events.append(("step", runner.iter))
            return step(*args, **kwargs)

        model.update_teacher, optimizer.step = noted_update, noted_step


def events_of(cfg):
    recorder = Recorder()
    train(cfg, recorder)
    return recorder.events


def test_one_update_after_every_step(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=3)
    cfg.model.teacher_momentum = 0.996
    events = events_of(cfg)
    assert [name for name, _ in events] == ["step", "teacher"] * 3
    assert {m for name, m in events if name == "teacher"} == {0.996}


@pytest.mark.parametrize("timing", ["after_step", "before_forward"])
def test_one_update_per_step_when_gradients_accumulate_across_epochs(pair_data, tmp_path, timing):
    """Two epochs of 5 iterations, 3 accumulated: steps in iterations 2, 5, 8 and, the rest, 9."""
    cfg = demo_config(pair_data, tmp_path, iterations=5, epochs=2)
    cfg.optim_wrapper.accumulative_counts = 3
    cfg.default_hooks.teacher_update.timing = timing
    events = events_of(cfg)
    assert [value for name, value in events if name == "step"] == [2, 5, 8, 9]
    pair = ["step", "teacher"] if timing == "after_step" else ["teacher", "step"]
    assert [name for name, _ in events] == pair * 4


def test_cosine_momentum_has_its_closed_form(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=4, epochs=2)
    cfg.model.teacher_momentum = 0.9
    cfg.default_hooks.teacher_update.end_momentum = 1.0
    momenta = [value for name, value in events_of(cfg) if name == "teacher"]
    expected = [1 - 0.1 * (math.cos(math.pi * k / 8) + 1) / 2 for k in range(8)]
    assert momenta == pytest.approx(expected, abs=1e-15)
    assert momenta[0] == pytest.approx(0.9)
    assert momenta == sorted(momenta)


def test_before_forward_leaves_a_teacher_that_has_not_seen_the_last_step(pair_data, tmp_path):
    """With m = 0 the teacher is the student of its last update."""
    students = {}
    for timing in ("after_step", "before_forward"):
        cfg = demo_config(pair_data, tmp_path / timing, iterations=2)
        cfg.model.teacher_momentum = 0.0
        cfg.default_hooks.teacher_update.timing = timing
        students[timing] = train(cfg).model
    new, old = (
        torch.equal(m.teacher.backbone.conv1.weight, m.backbone.conv1.weight)
        for m in students.values()
    )
    assert new and not old


def test_unknown_timing_is_refused():
    with pytest.raises(UserError, match="timing must be 'after_step' or 'before_forward'"):
        TeacherUpdateHook(timing="sometimes")
