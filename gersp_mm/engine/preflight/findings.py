"""Findings of checks, and how they are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gersp_mm.utils.errors import UserError, counted

SHOWN = 10  # errors in one message
RULE = "!" * 96


class Finding(NamedTuple):
    """One fault that a check found.

    Attributes:
        field: Dotted key of the config.
        problem: A sentence that names the fault.
        fix: A sentence that names the remedy.
        severity: ``'error'`` or ``'warning'``.
    """

    field: str
    problem: str
    fix: str
    severity: str = "error"

    @property
    def text(self) -> str:
        """The problem and the fix in one line."""
        return f"{self.problem} {self.fix}".strip()


Check = Callable[[Any], Iterable[Finding]]


def run_checks(checks: Iterable[Check], subject: Any) -> list[Finding]:
    """Return the findings of independent checks of one subject, without duplicates.

    Args:
        checks: Functions that take the subject. A :class:`UserError` becomes a finding.
        subject: A config, or a runner.
    """
    found: dict[str, Finding] = {}
    for check in checks:
        try:
            for finding in check(subject):
                found.setdefault(finding.text, finding)
        except UserError as error:
            found.setdefault(str(error), Finding("", str(error), ""))
    return list(found.values())


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Raise all errors together.

    Raises:
        UserError: At least one finding is an error.
    """
    errors = [finding.text for finding in findings if finding.severity == "error"]
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        lines = [f"\n  {number}. {text}" for number, text in enumerate(errors[:SHOWN], 1)]
        if len(errors) > SHOWN:
            lines.append(f"\n  and {len(errors) - SHOWN} more")
        raise UserError(f"{counted(len(errors), 'error')} in the config:{''.join(lines)}")


def warn(findings: Iterable[Finding], say: Callable[[str], Any]) -> None:
    """Report each warning in a frame.

    Args:
        findings: Warnings, and errors, which are ignored.
        say: Function that takes one message.
    """
    for finding in findings:
        if finding.severity == "warning":
            lines = [f"  {text}\n" for text in (finding.problem, finding.fix) if text]
            say(f"\n{RULE}\n{''.join(lines)}{RULE}")
