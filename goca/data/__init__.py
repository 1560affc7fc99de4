"""Data sets: one module each, with one table of classes per data set in `tables/`."""
