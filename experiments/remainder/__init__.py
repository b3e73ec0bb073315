"""What noise on the plaintext remainder, or withholding it, costs in accuracy."""
