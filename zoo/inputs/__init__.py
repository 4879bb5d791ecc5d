"""The inputs of a model: image decoding, text cleaning and tokens. No torch."""
