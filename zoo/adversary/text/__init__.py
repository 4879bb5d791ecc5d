"""Attacks on the words of a prompt, within a budget of edits that a reader still reads."""
