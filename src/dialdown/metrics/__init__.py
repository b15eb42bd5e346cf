"""One module per metric: what it measures, in which unit, and its section of METHOD."""
