"""The parts of the Explore page: map, filters, grid, one image, corrections and their history."""
