"""Frozen pretrained encoders: a poster or a text becomes a vector of D numbers."""
