"""The evaluation report with model card, in the order of CLAIM 2024: HTML and PDF.

Owns the content of the report. Every number comes from a saved evaluation and the functions of
core.stats.metrics, so that command, page and report agree. Items that a program cannot know
(funding, ethics, acquisition) are left to the author. English only, like all of core.
"""

from pathlib import Path

from core.errors import ConfigError
from core.export.evaluation_report.content import build_report
from core.export.evaluation_report.html import to_html
from core.export.evaluation_report.pdf import to_pdf
from core.files.whole import write_bytes

__all__ = ["build_report", "to_html", "to_pdf", "write_report"]


def write_report(
    checkpoints_dir: Path,
    model_id: str,
    evaluation: str,
    *,
    html: Path | None = None,
    pdf: Path | None = None,
) -> None:
    """Write a model's report on a saved evaluation to files, each atomically.

    Raises:
        CheckpointError: there is no such model or evaluation.
        ConfigError: a file cannot be written.
    """
    report = build_report(checkpoints_dir, model_id, evaluation)
    written = {}
    if html is not None:
        written[html] = to_html(report).encode()
    if pdf is not None:
        written[pdf] = to_pdf(report)
    for path, data in written.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        except OSError as err:
            raise ConfigError(f"cannot write {path} ({err.strerror}).") from err
