"""tokens -> batches."""
