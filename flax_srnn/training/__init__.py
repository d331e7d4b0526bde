"""The training program behind `flax-srnn train`: a small loop, and experiments that it knows nothing of.

    from flax_srnn.training import train
    run = train("sunspots", steps=500)

Data flows one way: config -> task (data, model, loss) -> loop (steps, scores, checkpoints) -> report -> the folder of the run.
Nothing of the library imports this package; it needs the extra `[train]`.
"""

from flax_srnn.exits import Interrupted as Interrupted
from flax_srnn.training.loop import RunFailed as RunFailed
from flax_srnn.training.program import Run as Run
from flax_srnn.training.program import load as load
from flax_srnn.training.program import predict as predict
from flax_srnn.training.program import resume as resume
from flax_srnn.training.program import runs as runs
from flax_srnn.training.program import sample as sample
from flax_srnn.training.program import train as train

__all__ = ["Interrupted", "Run", "RunFailed", "load", "predict", "resume", "runs", "sample", "train"]
