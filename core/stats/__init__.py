"""Numbers about answers: metrics, calibration, curves, intervals, paired tests, subgroups, shift.

Takes arrays and returns records; knows nothing of models.
"""
