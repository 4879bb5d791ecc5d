"""The guard inside a vision-language model: SafeCLIP's detector on its own vision pass, and what follows from it."""
