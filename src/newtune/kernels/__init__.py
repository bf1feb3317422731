"""Fast tensor functions, each beside the plain one that people read; tests prove them equal."""
