"""Embeddings with labels: search, vote, choice of K, novelty, leave-one-out, corrections, the 2-D
map.
"""
