"""The parts of the Models page: list, comparison, files."""
