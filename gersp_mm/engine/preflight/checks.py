"""All checks before the first step. Each is fast, takes one subject and yields findings."""

from gersp_mm.engine.preflight import (
    batch,
    classes,
    monitors,
    names,
    operators,
    parts,
    pipelines,
    schedule,
    shapes,
    teacher,
    values,
)

# Checks of a config, before anything is built.
CONFIG_CHECKS = (
    names.check_config_names,
    names.check_types,
    values.check_host,
    values.check_values,
    values.check_normalisation,
    values.check_initialisation,
    values.check_learning_rate,
    values.check_workers,
    classes.check_topk,
    parts.check_parts,
)
# Checks of a built runner.
RUN_CHECKS = (
    classes.check_natural_classes,
    classes.check_downstream_classes,
    classes.check_class_names,
    batch.check_epoch,
    batch.check_pooled_norm,
    batch.check_queue,
    batch.check_accumulation,
    batch.check_view_sizes,
    pipelines.check_pipelines,
    shapes.check_shapes,
    batch.check_base_batch_size,
    teacher.check_colour,
    teacher.check_teacher_moves,
    teacher.check_optimizer,
    teacher.check_teacher_start,
    teacher.check_batch_norm,
    schedule.check_schedule,
    schedule.check_checkpoint_counting,
    monitors.check_monitors,
    operators.check_operators,
)
# Checks of a runner that only tests.
TEST_CHECKS = (classes.check_downstream_classes, operators.check_operators)
