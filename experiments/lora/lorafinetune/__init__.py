"""A Flower app that fine-tunes adapters, in the shape of FlowerTune."""
