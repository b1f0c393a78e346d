"""Image and model to diagnosis with its evidence."""
