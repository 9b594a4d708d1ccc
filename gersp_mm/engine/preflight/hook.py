"""The hook that checks a run before its first step."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from gersp_mm.engine.precision import described
from gersp_mm.engine.preflight.checks import CONFIG_CHECKS, RUN_CHECKS, TEST_CHECKS
from gersp_mm.engine.preflight.findings import refuse_errors, run_checks, warn
from gersp_mm.engine.preflight.operators import tell_operators
from gersp_mm.registry import HOOKS
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check config, data, model and optimizer against each other before the first iteration.

    Warnings are logged. All errors are raised together.

    Raises:
        UserError: A value is out of range, or parts of the run do not fit together.
    """

    priority = "VERY_HIGH"
    told = False

    def before_train(self, runner: Any) -> None:
        """Run the checks of the config and of the built run."""
        tell_operators(runner)
        runner.logger.info(described(runner.optim_wrapper))
        findings = run_checks(CONFIG_CHECKS, runner.cfg) + run_checks(RUN_CHECKS, runner)
        warn(findings, runner.logger.warning)
        refuse_errors(findings)

    def before_test(self, runner: Any) -> None:
        """Check the heads, unless only features are evaluated."""
        if not getattr(runner.test_loop, "starts_from_pretrained", False):
            tell_operators(runner)
            findings = run_checks(TEST_CHECKS, runner)
            warn(findings, runner.logger.warning)
            refuse_errors(findings)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log once how much data the shuffling of keys sends."""
        sent = getattr(unwrap(runner.model), "exchanged_bytes", 0)
        if sent and not self.told:
            runner.logger.info(
                f"key_bn='shuffle' sends {sent / 2**20:.1f} MiB of images per step and process"
            )
            self.told = True
