"""Frozen pretrained encoders, which turn a poster or a text into a vector of D numbers."""
