"""Models and their SAEs: which there are, where their weights come from, what they need, how they
run.
"""
