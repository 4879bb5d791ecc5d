"""Attacks on one's own models, to measure how robust they are: images, prompts, and both together."""
