"""What the layers of both families, Flax Linen and Flax NNX, share: options, driving a cell over time, recorded states."""
