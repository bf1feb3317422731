"""Whole models in the formats of other programs: families, tokenizers and the file itself."""
