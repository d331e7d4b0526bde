"""The running Python's own standard library, character by character, in half an hour on two CPU cores.

Chosen by short runs on validation files, 3.3 million characters each, in bits per character of the validation part: one layer
of 512 at learning rate 0.002 2.096, at 0.004 2.002, with larger first embeddings 1.965, the same with 16 streams for twice as
many steps 2.070; two layers of 384 1.930. Units and steps then fill the half hour: about 19 steps of 2048 characters a second.
"""

from flax_srnn.training.tasks.characters import Characters

config = Characters(
    data="python_source",
    layers=2,
    units=448,
    embedding=64,
    batch_size=32,
    window=64,
    steps=26000,
    learning_rate=1e-3,
    schedule="cosine",
    warm_up_steps=200,
    evaluate_every=2600,
    log_every=100,
)
