"""Numbers about answers: metrics, calibration, curves, intervals, paired tests, subgroups, shift.

Arrays in, records out; knows no model.
"""
