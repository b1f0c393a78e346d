"""The parts of the Fine-tune page: data and its check, recipe, jobs."""
