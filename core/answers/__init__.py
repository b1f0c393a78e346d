"""Image + model -> diagnosis with its evidence."""
