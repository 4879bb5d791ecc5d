"""The bundle on disk: engines, card.json, policy.yaml, tokenizer.json and manifest.json. No torch to read it."""
