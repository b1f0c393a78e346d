"""The parts of the Diagnose page: intake, worklist, one case with its evidence, exports."""
