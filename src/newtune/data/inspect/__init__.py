"""See what is trained: rows, tokens and batches as they are, for the terminal and as a page."""
