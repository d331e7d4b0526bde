"""The training program behind `flax-srnn train` and `flax-srnn predict`: sunspot numbers, one year ahead.

Data flows one way: config -> data -> forecast (the network, how it is fitted, what it forecasts) -> scores -> run (the
folder that keeps the result) and plots. Nothing of the library imports this package.
"""
