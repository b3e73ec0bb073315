"""The client of the Flower app: its models, its partition of the data and its training.

Nothing in this package knows about encryption; ``client.app`` alone adds the fedsens mod.
"""
