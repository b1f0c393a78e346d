"""Heatmaps of the vote, and whether they are true."""
