"""Attacks on an image and its prompt together, with a budget for each."""
