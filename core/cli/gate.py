"""The check before training: print the audit's findings and refuse unsuitable data."""

from collections.abc import Sequence
from typing import Annotated

import typer

from core.cli.terminal import print_text, show_progress
from core.data.datasets import Dataset
from core.data.readiness import Finding, judge, judge_counts, require_ready

Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="First read all images and look for damage, repeats and leaks. Without it only the "
        "numbers of images are checked.",
    ),
]


def check_data(dataset: Dataset, *, has_look: bool) -> None:
    """Check the data, print the findings, and refuse data that is not ready for training.

    Args:
        dataset: with the run's validation split.
        has_look: read and compare all images; otherwise only their counts are checked.

    Raises:
        DataError: a finding blocks training.
    """
    if has_look:
        from core.data.audit import audit

        with show_progress("check") as report:
            findings = judge(audit(dataset, progress=report))
    else:
        findings = judge_counts(dataset)
    require_ready(findings)
    print_findings(findings)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line per finding, with blocking ones marked."""
    for finding in findings:
        mark = "STOPS TRAINING: " if finding.severity == "blocker" else ""
        print_text(f"- {mark}{finding.message}")
