"""The smallest Flower app with encrypted updates."""
