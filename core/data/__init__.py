"""Labelled images: folders, tables, npz, uploads, splits, audit, readiness to train."""
