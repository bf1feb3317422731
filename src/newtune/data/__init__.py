"""From rows to packed, masked batches: sources → formats → chat → tokenize → store → packing."""
