"""documents -> tokens on disk -> one long sequence."""
