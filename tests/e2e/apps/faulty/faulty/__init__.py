"""A small Flower app whose clients fail when they are told to."""
