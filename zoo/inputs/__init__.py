"""What goes into a model: image decoding, text cleaning and tokens. No torch."""
