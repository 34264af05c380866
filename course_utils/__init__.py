"""The helper functions of Scalable SAE Circuits; each module imports only from those above it.

    hub.py          the model hub: is it here, may I have it, fetch it
    weights.py      bytes: find, fetch, verify, convert, cache
    sessions.py     Python's interpreter as prompts: dictionaries and lists, and what is asked of them
    tasks.py        prompt pairs and their tokens
    catalog.py      what labs there are, and which public SAEs
    needs.py        what a lab needs, and whether this machine has it
    loaders.py      from files to models and SAEs
    labs.py         a model with the SAEs to study it
    layers.py       the model's layers, one by one: a forward pass that starts anywhere
    masks.py        what is kept of each SAE
    splice.py       the forward pass with SAEs in the residual stream
    attribution.py  a score per (position, latent)
    optimize.py     a learned mask
    bootstrap.py    95 % intervals over prompts
    evaluate.py     how good is a circuit?
    compounding.py  how the error of a splice grows, against noise of the same size
    text.py         running text: tokens, activations, and what the model loses when they are replaced
    sweep.py        many circuits, on one machine or many
    published.py    the post's circuits, and ours beside them
    explain.py      what a latent means: where it fires, what it writes, what happens when it is forced
    attacks.py      dictionaries that fool a model of code, what it says to them, what its latents know
    plots.py        the figures
    widgets.py      things to click on
    exercises.py    @exercise and check; exercises_NN.py holds the exercises of notebook NN

The data's way is one line: ``Task → SplicedModel(lab) → scores | masks → evaluation → figure``.
"""
