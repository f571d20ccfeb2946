"""text -> ids."""
