"""Adapters of language models, fine-tuned in plaintext and encrypted."""
