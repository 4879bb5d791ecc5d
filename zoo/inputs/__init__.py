"""What goes into a model: image decoding and text cleaning without torch; resize and normalisation with it."""
