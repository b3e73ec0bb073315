"""The server of the Flower app."""
