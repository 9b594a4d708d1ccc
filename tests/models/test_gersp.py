"""The algorithm: which parts exist, who learns from what, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from gersp_mm import GeRSP
from gersp_mm.backbones import export_backbone
from gersp_mm.utils.errors import UserError
from tests.support.models import batch, tiny_gersp, total


def student_parameters(model):
    return [*model.backbone.parameters(), *model.neck.parameters()]


def assert_teacher_is_student(model):
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


class TestTeacher:
    def test_is_the_student_after_construction_and_after_init_weights(self):
        model = GeRSP(
            backbone=dict(type="ResNet", depth=18, out_indices=(3,)),
            neck=dict(type="MoCoV2Neck", in_channels=512, hid_channels=32, out_channels=128),
            head=dict(type="gersp_mm.InfoNCEHead"),
            queue_len=16,
        )
        assert_teacher_is_student(model)
        before = model.backbone.conv1.weight.clone()
        model.init_weights()
        assert not torch.equal(before, model.backbone.conv1.weight)
        assert_teacher_is_student(model)

    def test_is_the_student_after_pretrained_weights(self, tmp_path):
        source = tiny_gersp()
        path = tmp_path / "source.pth"
        export_backbone(source.state_dict(), path, "ResNet-18", "GeRSP", [0] * 3, [1] * 3)
        pretrained = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
        backbone = dict(type="ResNet", depth=18, base_channels=8, out_indices=(3,))
        model = tiny_gersp(backbone={**backbone, "init_cfg": pretrained})
        model.init_weights()
        assert torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)
        assert_teacher_is_student(model)

    def test_is_the_student_after_loading_a_file_without_teacher(self):
        source = tiny_gersp()
        state = {k: v for k, v in source.state_dict().items() if not k.startswith("teacher.")}
        model = tiny_gersp()
        assert not torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)
        model.load_state_dict(state)
        assert torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)
        assert_teacher_is_student(model)

    def test_keeps_its_own_weights_when_the_file_has_them(self):
        source = tiny_gersp()
        with torch.no_grad():
            source.teacher.backbone.conv1.weight.fill_(3)
        model = tiny_gersp()
        model.load_state_dict(source.state_dict())
        assert torch.all(model.teacher.backbone.conv1.weight == 3)

    def test_separate_start_draws_the_backbone_anew_and_copies_the_projector(self):
        model = tiny_gersp(teacher_init="separate")
        model.init_weights()
        assert not torch.equal(model.teacher.backbone.conv1.weight, model.backbone.conv1.weight)
        for own, student in zip(model.teacher.neck.parameters(), model.neck.parameters()):
            assert torch.equal(own, student)

    def test_parameters_are_the_backbones_then_the_necks(self):
        model = tiny_gersp()
        names = [name for name, _ in model.teacher.named_parameters()]
        expected = [f"backbone.{n}" for n, _ in model.backbone.named_parameters()]
        expected += [f"neck.{n}" for n, _ in model.neck.named_parameters()]
        assert names == expected

    def test_update_is_the_closed_form_over_steps(self):
        model = tiny_gersp(teacher_momentum=0.9).double()
        start = [p.detach().clone() for p in model.teacher.parameters()]
        with torch.no_grad():
            for p in student_parameters(model):
                p.add_(torch.randn_like(p))
        for _ in range(5):
            model.update_teacher()
        for own, first, student in zip(
            model.teacher.parameters(), start, student_parameters(model)
        ):
            torch.testing.assert_close(own, 0.9**5 * first + (1 - 0.9**5) * student)

    def test_frozen_projector_never_moves_while_the_backbone_does(self):
        model = tiny_gersp(teacher_projector="frozen", teacher_momentum=0.5)
        neck = copy.deepcopy(model.teacher.neck.state_dict())
        conv = model.teacher.backbone.conv1.weight.clone()
        with torch.no_grad():
            for p in student_parameters(model):
                p.add_(1)
        model.update_teacher()
        assert all(torch.equal(v, neck[k]) for k, v in model.teacher.neck.state_dict().items())
        torch.testing.assert_close(model.teacher.backbone.conv1.weight, conv + 0.5)

    def test_batch_norm_statistics_come_from_its_own_forward(self):
        model = tiny_gersp()
        model.loss(**batch())
        student, teacher = model.backbone.bn1, model.teacher.backbone.bn1
        assert teacher.num_batches_tracked == 1
        assert not torch.equal(student.running_mean, teacher.running_mean)
        kept = teacher.running_mean.clone()
        model.update_teacher()
        assert torch.equal(teacher.running_mean, kept)


class TestBranches:
    def test_every_trainable_parameter_learns_and_the_teacher_does_not(self):
        model = tiny_gersp()
        total(model.loss(**batch())).backward()
        for name, parameter in model.named_parameters():
            if name.startswith("teacher."):
                assert not parameter.requires_grad and parameter.grad is None, name
            else:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("changes", [dict(natural_head=None), dict(alpha=0)])
    def test_without_natural_branch_it_is_moco(self, changes):
        model = tiny_gersp(**changes)
        arguments = batch()
        del arguments["inputs"]["natural"]
        losses = model.loss(**arguments)
        assert "loss_ct" in losses and "loss_ce" not in losses
        assert not any(name.startswith("natural_head") for name in model.state_dict())
        losses["loss_ct"].backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_without_contrastive_branch_it_is_supervised_training(self):
        model = tiny_gersp(neck=None, head=None)
        arguments = batch()
        arguments["inputs"] = dict(natural=arguments["inputs"]["natural"])
        losses = model.loss(**arguments)
        assert set(losses) == {"loss_ce", "acc_ce_top1"}
        assert model.teacher is None
        assert not any(name.startswith(("teacher", "queue")) for name in model.state_dict())
        losses["loss_ce"].backward()
        assert all(p.grad is not None for p in model.parameters())
        model.update_teacher()  # nothing to do, and no error

    def test_alpha_scales_the_natural_loss_alone(self):
        model = tiny_gersp()
        once = model.loss(**batch())
        model.alpha = 2.5
        again = tiny_gersp_from(model).loss(**batch())
        torch.testing.assert_close(again["loss_ce"], 2.5 * once["loss_ce"])

    def test_total_is_what_mmengine_sums(self):
        model = tiny_gersp(alpha=0.3)
        losses = model.loss(**batch())
        summed, _ = model.parse_losses(losses)
        torch.testing.assert_close(summed, losses["loss_ct"] + losses["loss_ce"])

    def test_joint_forward_mixes_batch_statistics_and_separate_forward_does_not(self):
        joint = tiny_gersp(joint_forward=True)
        separate = tiny_gersp_from(joint, joint_forward=False)
        arguments = batch()
        joint.loss(**arguments)
        separate.loss(**arguments)
        both = torch.cat([arguments["inputs"]["rs_query"], arguments["inputs"]["natural"]])
        mixed = F.conv2d(both, joint.backbone.conv1.weight, stride=2, padding=3)
        expected = 0.1 * mixed.mean((0, 2, 3))
        torch.testing.assert_close(joint.backbone.bn1.running_mean, expected)
        assert joint.backbone.bn1.num_batches_tracked == 1
        assert separate.backbone.bn1.num_batches_tracked == 2

    def test_natural_images_can_be_kept_out_of_the_running_statistics(self):
        separate = tiny_gersp(joint_forward=False)
        kept_out = tiny_gersp_from(separate, joint_forward=False, natural_statistics=False)
        alone = tiny_gersp_from(separate, natural_head=None)
        arguments = batch()
        losses = [model.loss(**arguments) for model in (separate, kept_out, alone)]
        for name in ("loss_ct", "loss_ce"):  # in training the statistics change nothing
            assert torch.equal(losses[0][name], losses[1][name])
        found = dict(kept_out.backbone.named_buffers())
        for name, buffer in alone.backbone.named_buffers():
            if "running" in name:
                torch.testing.assert_close(found[name], buffer, rtol=0, atol=0)
                assert not torch.equal(found[name], dict(separate.backbone.named_buffers())[name])
        assert all(m.momentum == 0.1 for m in kept_out.modules() if hasattr(m, "momentum"))
        for wrong in (dict(joint_forward=True), dict(joint_forward=False, neck=None, head=None)):
            with pytest.raises(UserError, match="natural_statistics=False needs joint_forward"):
                tiny_gersp(natural_statistics=False, **wrong)

    def test_symmetric_loss_takes_both_ways_round(self):
        """Without BatchNorm's mixing it is the mean of the two one-sided losses."""
        model = tiny_gersp(symmetric=True, natural_head=None).eval()
        one_sided = [tiny_gersp_from(model, natural_head=None).eval() for _ in range(2)]
        arguments = batch()
        images = arguments["inputs"]
        turned = dict(rs_query=images["rs_key"], rs_key=images["rs_query"])
        loss = model.loss(**arguments)["loss_ct"]
        losses = [m.loss(i)["loss_ct"] for m, i in zip(one_sided, (images, turned))]
        assert losses[0] != losses[1]
        torch.testing.assert_close(loss, sum(losses) / 2)
        for each in (loss, *losses):
            each.backward()
        mean = sum(m.backbone.conv1.weight.grad for m in one_sided) / 2
        torch.testing.assert_close(model.backbone.conv1.weight.grad, mean, rtol=1e-4, atol=1e-7)
        keys = torch.cat([m.queue[:4] for m in one_sided])  # of the key views, of the query views
        torch.testing.assert_close(model.queue[:8], keys)
        assert int(model.queue_ptr) == 8

    def test_queue_takes_the_keys_after_the_loss_is_computed(self):
        model = tiny_gersp()
        old = model.queue.clone()
        arguments = batch()
        teacher = copy.deepcopy(model.teacher)
        keys = F.normalize(teacher(arguments["inputs"]["rs_key"])[0], dim=1)
        losses = model.loss(**arguments)
        torch.testing.assert_close(model.queue[:4], keys)
        assert torch.equal(model.queue[4:], old[4:])
        assert int(model.queue_ptr) == 4
        # the same loss against the queue as it was: the new keys were no negatives of themselves
        fresh = tiny_gersp_from(model)
        fresh.queue.copy_(old)
        fresh.teacher.load_state_dict(teacher.state_dict())
        torch.testing.assert_close(fresh.loss(**batch())["loss_ct"], losses["loss_ct"])

    def test_head_of_the_host_library_gives_the_same_loss_and_gradient(self):
        ours = tiny_gersp()
        cross_entropy = dict(type="CrossEntropyLoss")
        host_head = dict(type="ContrastiveHead", loss=cross_entropy, temperature=0.1)
        host = tiny_gersp_from(ours, head=host_head)
        for model in (ours, host):
            total(model.double().loss(**batch(dtype=torch.float64))).backward()
        for a, b in zip(student_parameters(ours), student_parameters(host)):
            torch.testing.assert_close(a.grad, b.grad)

    def test_autocast_changes_the_loss_little(self):
        model = tiny_gersp()
        exact = model.loss(**batch())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = tiny_gersp_from(model).loss(**batch())
        assert mixed["loss_ct"].dtype == torch.float32
        assert abs(mixed["loss_ce"] - exact["loss_ce"]) < 2e-2


def tiny_gersp_from(model, **changes):
    """Build another model with the student, teacher start and a fresh queue of ``model``."""
    changes.setdefault("alpha", model.alpha)
    other = tiny_gersp(**changes)
    other.backbone.load_state_dict(model.backbone.state_dict())
    other.neck.load_state_dict(model.neck.state_dict())
    if other.natural_head is not None:
        other.natural_head.load_state_dict(model.natural_head.state_dict())
    other.teacher.load_state_dict(model.teacher.state_dict())
    other.queue.copy_(model.queue)
    return other


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            (dict(teacher_momentum=1.5), "teacher_momentum cannot be 1.5. Set it to .* 0 to 1,"),
            (dict(teacher_momentum=float("nan")), "teacher_momentum cannot be nan"),
            (dict(alpha=-1), "alpha cannot be -1. Set it to a number of at least 0, such as 1.0"),
            (dict(alpha=float("nan")), "alpha cannot be nan"),
            (dict(alpha="1"), "alpha cannot be '1'"),
            (dict(queue_len=0), "queue_len cannot be 0. Set it to a whole number of at least 1"),
            (dict(queue_len=20.5), "queue_len cannot be 20.5"),
            (dict(symmetric="no"), "symmetric cannot be 'no'. Set it to True or False"),
            (
                dict(key_bn="shuffel"),
                "key_bn must be one of 'shuffle', 'split', 'sync', 'none', 'auto'",
            ),
            (dict(teacher_init="random"), "teacher_init must be one of 'copy', 'separate'"),
            (dict(teacher_projector="no"), "teacher_projector must be one of 'ema', 'frozen'"),
            (dict(neck=None), "needs both neck and head"),
            (dict(neck=None, head=None, natural_head=None), "no branch to train"),
            (dict(neck=None, head=None, alpha=0), "no branch to train"),
            (dict(feat_dim=9), "neck.out_channels=8, but feat_dim=9"),
        ],
    )
    def test_construction(self, changes, text):
        with pytest.raises(UserError, match=text):
            tiny_gersp(**changes)

    def test_unknown_argument(self):
        with pytest.raises(TypeError, match="momentun"):
            tiny_gersp(momentun=0.99)

    @pytest.mark.parametrize("name", ["rs_query", "rs_key", "natural"])
    def test_missing_images(self, name):
        arguments = batch()
        del arguments["inputs"][name]
        with pytest.raises(UserError, match=f"not '{name}'"):
            tiny_gersp().loss(**arguments)

    def test_missing_labels(self):
        with pytest.raises(UserError, match="needs data_samples with gt_label"):
            tiny_gersp().loss(batch()["inputs"], None)


def test_sync_bn_replaces_every_batch_norm_and_keeps_the_names():
    plain, synced = tiny_gersp(), tiny_gersp(key_bn="sync")
    kinds = {type(m) for m in synced.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {torch.nn.SyncBatchNorm}
    assert plain.state_dict().keys() == synced.state_dict().keys()


def test_extract_feat_gives_the_backbones_maps():
    model = tiny_gersp().eval()
    images = torch.randn(2, 3, 32, 32)
    (maps,) = model.extract_feat(images)
    assert torch.equal(maps, model.backbone(images)[0])
    assert torch.equal(model(images, mode="tensor")[0], maps)
