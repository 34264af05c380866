"""The helper functions of Scalable SAE Circuits; each module imports only from those above it.

    weights.py      bytes: find, fetch, verify, convert, cache
    tasks.py        prompt pairs and their tokens
    labs.py         a model with the SAEs to study it
    layers.py       the model's layers, one by one: a forward pass that starts anywhere
    masks.py        what is kept of each SAE
    splice.py       the forward pass with SAEs in the residual stream
    attribution.py  a score per (position, latent)
    optimize.py     a learned mask
    evaluate.py     how good is a circuit?
    plots.py        the figures
    widgets.py      things to click on

The data's way is one line: ``Task → SplicedModel(lab) → scores | masks → evaluation → figure``.
"""
