"""``fedsens map``: the sensitivity map of a model that can be imported, on data from a path."""
