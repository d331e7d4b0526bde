"""The running Python's own standard library, character by character, in half an hour on two CPU cores.

Chosen on validation files, in bits per character, by short runs with the cosine schedule (3.3 million characters each): one layer
of 512 at learning rate 0.002 2.096, at 0.004 2.002, with larger first embeddings 1.965, the same with 16 streams for twice as
many steps 2.070; two layers of 384 1.930. Two layers of 448 fill the half hour. In the long run 0.004 and 0.003 are too much: after
2600 steps of 26,000 the validation part took 2.192 at 0.003 and 2.004 at 0.001; after 1400 2.061 at 0.001 and 2.112 at 0.0005.
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
