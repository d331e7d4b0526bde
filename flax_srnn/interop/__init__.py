"""Ways in and out: `keras` files and layers, `torch`, `flax`'s own cells and `haiku`. Import the module that is needed."""
