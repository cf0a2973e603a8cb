"""The encoder: network table, semantic tokenizer, transformer, projection head, and their weights on disk."""
