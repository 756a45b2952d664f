"""Training of SAEs: recipes, activation feeds, the loop, checkpoints.

Architectures are plugins (`saebench_architectures`). What everything here shares:

    feed (activations in shuffled batches) ── scaled ──► TrainableSAE.loss ── backward ──► Adam ──► export ──► SAE

A recipe says everything that determines the weights besides the data; its hash names the result.
"""
