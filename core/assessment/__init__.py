"""What a model is worth: a split measured, studies, comparison, ablation, the activation gate."""
