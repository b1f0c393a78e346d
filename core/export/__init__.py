"""A case or an evaluation as PDF, DICOM, CSV, JSON, HTML."""
