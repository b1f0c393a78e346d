"""The performance of a model: a split measured, studies, comparison, ablation, the activation
gate.
"""
