"""The gallery as a working table: lists to review, other splits, kept maps."""
