"""What a federation will cost, before anything runs."""
