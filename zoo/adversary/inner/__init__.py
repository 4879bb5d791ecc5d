"""The inner maximisation of adversarial training: attacks lean enough to run in every training step."""
