"""Data to model: trunk cache, fitting, resume, estimate, the demo."""
