"""What a model is worth: figures of merit, and the report that shows them."""
