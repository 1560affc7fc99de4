"""Segments without words: formed from self-attention or features, then named by attention or matched with ground truth."""
