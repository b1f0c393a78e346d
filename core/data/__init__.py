"""Labelled images: the plan of a folder, tables, npz, uploads, splits, audit, readiness to
train.
"""
