"""The parts of the Evaluate page: runs, figures, studies, comparison, report."""
