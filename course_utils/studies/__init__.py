"""What a circuit is good for: dictionaries that fool a model of code."""
