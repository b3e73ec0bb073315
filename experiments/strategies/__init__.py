"""Which of Flower's strategies run in which mode, and whether they come out as without fedsens."""
