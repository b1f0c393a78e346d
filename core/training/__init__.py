"""Fine-tuning, from data to model bundle."""

from core.training.run import train

__all__ = ["train"]
