"""Evaluations of models, and the reports about them."""
