"""Files of models: written whole or not at all, held open as they were hashed, fetched from the Hub. No torch."""
