"""ids -> vectors -> logits and loss."""
