"""norms -> TensorBoard."""
