"""Attacks on the pixels of an image, within a norm ball and [0, 1]."""
