"""command line -> all of it."""
