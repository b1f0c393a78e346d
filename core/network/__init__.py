"""Pixels to unit embeddings: backbones cut into trunk and tail, weights, compiled trunks, views,
devices.
"""
