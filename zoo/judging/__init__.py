"""From scores to verdicts: judges, panels of them, text banks, and the scorer over any engine. No torch."""
