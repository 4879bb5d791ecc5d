"""Bundles that are written from arrays, node by node, where there is no torch to trace a module."""
