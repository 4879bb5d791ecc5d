"""Releases: written, loaded, made from checkpoints and from published weights of others."""
