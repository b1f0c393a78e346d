"""The systems of the report side by side: train, measure and test each on one data folder."""

from core.assessment.ablation.runs import SYSTEMS, System, run_ablation
from core.assessment.ablation.summary import write_table

__all__ = ["SYSTEMS", "System", "run_ablation", "write_table"]
