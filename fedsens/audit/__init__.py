"""How much the plaintext remainder of an update leaks: attacks, metrics, and a study of masks."""
