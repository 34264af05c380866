"""What a model is asked: tokens, prompt pairs, interpreter sessions, running text."""
