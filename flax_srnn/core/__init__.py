"""Pure functions on arrays: one step, all steps, and the ways to run them."""
