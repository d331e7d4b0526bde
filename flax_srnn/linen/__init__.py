"""The SimpleRNN family for Flax Linen; its names are those of `flax_srnn` itself."""
