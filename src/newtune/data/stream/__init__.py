"""Data that is read, tokenised and packed while the run goes on, from exact positions."""
