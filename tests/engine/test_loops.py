from __future__ import annotations

import signal
import time
from unittest import mock

import pytest
import torch
from mmengine.hooks import EarlyStoppingHook, Hook

from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.hooks.checkpoint_check import CheckpointCheckHook
from gersp_mm.engine.loop import make_resumable
from gersp_mm.engine.signals import SIGNALS
from gersp_mm.utils.errors import UserError
from tests.support.downstream import downstream_twin
from tests.support.runs import assert_same_training_state, build, demo_config, load, resumed, train

ITERATIONS, EPOCHS = 4, 3


class SignalAt(Hook):
    """Send this process a signal after one iteration, or around one epoch."""

    def __init__(self, number, iteration=None, epoch=None):
        self.number, self.iteration, self.epoch = number, iteration, epoch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            signal.raise_signal(self.number)

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.epoch:
            signal.raise_signal(self.number)


def config(data, work_dir, **changes):
    """Three epochs of four iterations, with a backbone that drops paths at random."""
    cfg = demo_config(data, work_dir, ITERATIONS, EPOCHS)
    cfg.model.backbone.drop_path_rate = 0.3
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    return cfg


def interrupt(cfg, *args, **kwargs):
    """Run until the signal ends the process; return its exit code."""
    with pytest.raises(SystemExit) as caught:
        train(cfg, SignalAt(*args, **kwargs))
    return caught.value.code


WORKERS = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
ACCUMULATING = dict(optim_wrapper__accumulative_counts=3)


@pytest.fixture(scope="module")
def whole(pair_data, tmp_path_factory):
    """The checkpoint folder of a run that nothing interrupted, no worker processes."""
    work_dir = tmp_path_factory.mktemp("whole")
    train(config(pair_data, work_dir))
    return work_dir


@pytest.fixture(scope="module")
def accumulating(pair_data, tmp_path_factory):
    """The same with 3 iterations a step, so that no epoch but the last ends with a step."""
    work_dir = tmp_path_factory.mktemp("accumulating")
    train(config(pair_data, work_dir, **ACCUMULATING))
    return work_dir


def test_reference_drops_paths_and_learns(whole):
    start, end = load(whole / "epoch_1.pth"), load(whole / "epoch_3.pth")
    name = "backbone.conv1.weight"
    assert not torch.equal(start["state_dict"][name], end["state_dict"][name])
    assert end["meta"]["iter"] == ITERATIONS * EPOCHS


def test_resume_at_an_epochs_end_is_exact(pair_data, tmp_path, whole):
    """Also with workers, and with other random numbers drawn before."""
    torch.manual_seed(12345)
    train(resumed(config(pair_data, tmp_path, **WORKERS), whole / "epoch_1.pth"))
    assert_same_training_state(tmp_path / "epoch_3.pth", whole / "epoch_3.pth")


@pytest.mark.parametrize(
    "number, code, workers",
    [
        (signal.SIGINT, 130, WORKERS),
        (signal.SIGTERM, 143, {}),
        (signal.SIGHUP, 129, {}),
        (signal.SIGUSR1, 138, WORKERS),
    ],
)
def test_resume_within_an_epoch_is_exact(pair_data, tmp_path, whole, number, code, workers):
    cfg = config(pair_data, tmp_path, **workers)
    assert interrupt(cfg, number, iteration=6) == code
    newest = latest_checkpoint(tmp_path)
    assert newest == str(tmp_path / "iter_6.pth")
    assert load(newest)["meta"]["epoch"] == 1
    train(resumed(cfg, newest))
    assert_same_training_state(tmp_path / "epoch_3.pth", whole / "epoch_3.pth")


@pytest.mark.parametrize(
    "when, saved",
    [
        (dict(iteration=1), "iter_1.pth"),
        (dict(iteration=8), "iter_8.pth"),
        (dict(epoch=2), "iter_8.pth"),
        (dict(iteration=12), "iter_12.pth"),
    ],
    ids=["first iteration", "last of an epoch", "between epochs", "last of the run"],
)
def test_resume_is_exact_wherever_the_signal_comes(pair_data, tmp_path, whole, when, saved):
    cfg = config(pair_data, tmp_path)
    interrupt(cfg, signal.SIGINT, **when)
    assert latest_checkpoint(tmp_path) == str(tmp_path / saved)
    train(resumed(cfg, tmp_path / saved))
    assert_same_training_state(tmp_path / "epoch_3.pth", whole / "epoch_3.pth")


def test_resume_is_exact_where_keys_are_dealt_to_groups(pair_data, tmp_path):
    def splitting(name):
        cfg = config(pair_data, tmp_path / name, **ACCUMULATING)
        cfg.model.update(key_bn="split", split_size=2)
        return cfg

    train(splitting("whole"))
    cfg = splitting("killed")
    interrupt(cfg, signal.SIGINT, iteration=6)
    train(resumed(cfg, tmp_path / "killed" / "iter_6.pth"))
    ends = [tmp_path / name / "epoch_3.pth" for name in ("killed", "whole")]
    assert_same_training_state(*ends)


def test_several_interruptions_in_one_epoch(pair_data, tmp_path, whole):
    cfg = config(pair_data, tmp_path)
    for iteration in (5, 6, 7):
        interrupt(cfg, signal.SIGINT, iteration=iteration)
        cfg = resumed(cfg, tmp_path / f"iter_{iteration}.pth")
    train(cfg)
    assert_same_training_state(tmp_path / "epoch_3.pth", whole / "epoch_3.pth")


def test_accumulated_gradients_survive_an_epochs_end(pair_data, tmp_path, accumulating):
    checkpoint = accumulating / "epoch_1.pth"
    gradients = load(checkpoint)["gradients"]
    assert all(gradients[name].abs().sum() > 0 for name in ("backbone.conv1.weight",))
    assert not any(name.startswith("teacher.") for name in gradients)
    train(resumed(config(pair_data, tmp_path, **ACCUMULATING), checkpoint))
    assert_same_training_state(tmp_path / "epoch_3.pth", accumulating / "epoch_3.pth")


def test_a_signal_waits_for_the_optimizer_step(pair_data, tmp_path, accumulating):
    """Asked to stop after iteration 7, the run stops after the step in iteration 9."""
    cfg = config(pair_data, tmp_path, **ACCUMULATING)
    interrupt(cfg, signal.SIGINT, iteration=7)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "iter_9.pth")
    assert "gradients" not in load(tmp_path / "iter_9.pth")
    train(resumed(cfg, tmp_path / "iter_9.pth"))
    assert_same_training_state(tmp_path / "epoch_3.pth", accumulating / "epoch_3.pth")


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(pair_data, tmp_path):
    cfg = config(pair_data, tmp_path / "whole", randomness=dict(seed=None))
    train(cfg)
    cfg = config(pair_data, tmp_path / "resumed", randomness=dict(seed=None))
    train(resumed(cfg, tmp_path / "whole" / "epoch_1.pth"))
    assert_same_training_state(
        tmp_path / "resumed" / "epoch_3.pth", tmp_path / "whole" / "epoch_3.pth"
    )


def test_epochs_of_another_length_are_refused_within_an_epoch(pair_data, tmp_path):
    cfg = config(pair_data, tmp_path)
    interrupt(cfg, signal.SIGINT, iteration=6)
    cfg.train_dataloader.batch_size = 8
    with pytest.raises(UserError) as caught:
        train(resumed(cfg, tmp_path / "iter_6.pth"))
    assert str(caught.value) == (
        "the checkpoint is 2 iterations into an epoch of 4, but an epoch now has 2. Resume with "
        "the batch size, number of processes and data of the first run, or from a checkpoint "
        "written at the end of an epoch."
    )


def test_epochs_of_another_length_are_warned_about_at_an_epochs_end(pair_data, tmp_path, whole):
    cfg = config(pair_data, tmp_path, train_dataloader__batch_size=8)
    runner = build(resumed(cfg, whole / "epoch_2.pth"))
    with mock.patch.object(runner.logger, "warning") as warning:
        runner.train()
    texts = [call.args[0] for call in warning.call_args_list]
    assert any(
        "had 4 iterations before and has 2 now. The run continues at epoch 2" in t for t in texts
    )
    assert load(tmp_path / "epoch_3.pth")["meta"]["iter"] == 6


def test_any_sampler_goes_on_within_an_epoch(pair_data, tmp_path):
    """One of MMEngine's, which gives the samples no seeds."""

    def by_default_sampler(work_dir):
        cfg = config(pair_data, work_dir)
        cfg.train_dataloader.sampler = dict(type="DefaultSampler", shuffle=True)
        return cfg

    train(by_default_sampler(tmp_path / "whole"))
    interrupt(by_default_sampler(tmp_path), signal.SIGINT, iteration=8)
    train(resumed(by_default_sampler(tmp_path), tmp_path / "iter_8.pth"))
    assert_same_training_state(tmp_path / "epoch_3.pth", tmp_path / "whole" / "epoch_3.pth")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "background"])
def test_a_signal_that_was_ignored_stays_ignored(pair_data, tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        train(demo_config(pair_data, tmp_path, iterations=3), SignalAt(number, iteration=1))
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "epoch_1.pth")
    assert not list(tmp_path.glob("iter_*.pth"))


def test_a_second_ctrl_c_ends_at_once(pair_data, tmp_path):
    class TwiceDuringAnIteration(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 5:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)  # an echo of the first
                time.sleep(1.1)
                self.waited = True
                signal.raise_signal(signal.SIGINT)

    hook = TwiceDuringAnIteration()
    with pytest.raises(KeyboardInterrupt):
        train(config(pair_data, tmp_path), hook)
    assert hook.waited
    assert latest_checkpoint(tmp_path) == str(tmp_path / "epoch_1.pth")


def test_handlers_are_put_back(pair_data, tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    cfg = demo_config(pair_data, tmp_path, iterations=1)
    seen = []

    class Look(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    train(cfg, Look())
    assert len(seen) == 4 and not set(seen) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_cannot_be_exact_is_said_in_one_line(pair_data, tmp_path):
    class DynamicRoIHead(torch.nn.Module):
        """Stands for mmdet's, which keeps a history in a list."""

    runner = build(demo_config(pair_data, tmp_path, iterations=1))
    runner.model.head_of_another_host = DynamicRoIHead()
    with mock.patch.object(runner.logger, "warning") as warning:
        runner.train()
    texts = [call.args[0] for call in warning.call_args_list]
    assert (
        texts.count(
            "a resumed run will not exactly equal the uninterrupted run: DynamicRoIHead "
            "forgets its thresholds until it computes the next"
        )
        == 1
    )


def test_a_signal_within_an_evaluation_leaves_it_and_the_resumed_run_repeats_it(
    downstream_data, tmp_path
):
    """Two evaluations of several batches each; the signal comes in the first batch of the first."""

    def cfg_of(work_dir):
        cfg = downstream_twin("eurosat/finetune_r50_eurosat.py", downstream_data, work_dir)
        cfg.model.backbone.init_cfg = None
        cfg.train_cfg.update(max_epochs=2, val_interval=1)
        cfg.val_dataloader.batch_size = 4
        return cfg

    class InEvaluation(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            signal.raise_signal(signal.SIGTERM)

    class Evaluated(Hook):
        def __init__(self):
            self.seen = []

        def after_val_epoch(self, runner, metrics=None):
            self.seen.append((runner.iter, metrics["accuracy/top1"]))

    def run(cfg, *hooks):
        runner = build(cfg, *hooks)
        make_resumable(runner)
        runner.train()

    whole, resumed_run = Evaluated(), Evaluated()
    run(cfg_of(tmp_path / "whole"), whole)
    with pytest.raises(SystemExit):
        run(cfg_of(tmp_path), InEvaluation())
    run(resumed(cfg_of(tmp_path), tmp_path / "iter_2.pth"), resumed_run)
    assert resumed_run.seen == whole.seen and [step for step, _ in whole.seen] == [2, 4]
    assert_same_training_state(tmp_path / "epoch_2.pth", tmp_path / "whole" / "epoch_2.pth")


@pytest.mark.parametrize("unit", ["epoch", "iter"])
def test_early_stopping_counts_on_in_a_run_killed_before_an_evaluation(
    downstream_data, tmp_path, unit
):
    """Three evaluations without improvement end the run, with the second lost to ``kill -9``."""
    by_epoch = unit == "epoch"

    def cfg_of(work_dir):
        cfg = downstream_twin("eurosat/finetune_r50_eurosat.py", downstream_data, work_dir)
        cfg.model.backbone.init_cfg = None
        steps = 1 if by_epoch else 2
        kind = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
        cfg.train_cfg = dict(type=kind, val_interval=steps) | {f"max_{unit}s": 8 * steps}
        cfg.param_scheduler = []
        cfg.default_hooks.checkpoint = dict(
            type="gersp_mm.AtomicCheckpointHook", by_epoch=by_epoch, interval=steps
        )
        return cfg

    class Monitored(Hook):
        priority = "VERY_HIGH"

        def __init__(self, killed_before=None):
            self.killed_before = killed_before

        def before_val(self, runner):
            if runner.iter == self.killed_before:
                raise RuntimeError("killed")

        def after_val_epoch(self, runner, metrics=None):
            metrics["accuracy/top1"] = {2: 5.0, 4: 4.0, 6: 3.0}.get(runner.iter, 2.0)

    def run(cfg, hook):
        patience = EarlyStoppingHook("accuracy/top1", rule="greater", patience=3)
        runner = build(cfg, hook, patience, CheckpointCheckHook())
        make_resumable(runner)
        with mock.patch.object(runner.logger, "warning") as warning:
            runner.train()
        return runner, [call.args[0] for call in warning.call_args_list]

    assert run(cfg_of(tmp_path / "whole"), Monitored())[0].iter == 8
    with pytest.raises(RuntimeError, match="killed"):
        run(cfg_of(tmp_path / "run"), Monitored(killed_before=4))
    checkpoint = tmp_path / "run" / ("epoch_2.pth" if by_epoch else "iter_4.pth")
    runner, texts = run(resumed(cfg_of(tmp_path / "run"), checkpoint), Monitored())
    assert runner.iter == 8
    assert not [text for text in texts if "EarlyStopping" in text]

    older = load(checkpoint)
    del older["early_stopping"]
    torch.save(older, checkpoint)
    _, texts = run(resumed(cfg_of(tmp_path / "run"), checkpoint), Monitored())
    assert any("does not hold its best value of accuracy/top1" in text for text in texts)


def test_too_few_images_for_a_batch_are_refused_with_the_numbers(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path)
    cfg.train_dataloader.batch_size = 17
    with pytest.raises(UserError) as caught:
        train(cfg)
    assert str(caught.value) == (
        "an epoch has no iteration, because 16 samples do not fill a batch of 17 (17 per process). "
        "Lower train_dataloader.batch_size or add images."
    )
