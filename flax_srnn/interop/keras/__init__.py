"""Keras's files, configurations and live layers, and ours: read and written without Keras or TensorFlow.

A model file is data from a stranger. Nothing in it is executed or unpickled: of a configuration only the classes and
arguments below are understood, and arrays are only numbers. What is damaged, hostile or cannot be represented is a
ValueError when it is read. The limits are the named constants of `reading` (sizes, archive members), `hdf5` (objects,
nesting), `identifiers` (nesting of configurations), `build` (layers), `graph` (calls) and `shared` (what a layer makes).

    read       .keras (Keras 3, tf.keras 2.12 and later), .weights.h5, legacy .h5 (of whole models and of weights);
               nothing beyond this library is needed
    written    .weights.h5, which needs h5py: pip install 'flax-srnn[interop]'

What this package names is public; its modules, from the ground up:

    reading, hdf5                  bytes, archives, JSON and HDF5 from strangers
    structure, weights             where each array of a layer stands, and the arrays
    config, gated_layers           the configurations of recurrent layers
    arguments, shared              those of the other layers, and what these share
    pointwise, normalizing,        the other layers, by what they look at
    over_time, merging
    layers                         the table of them; a class to be read too is added in one of the four
    operations                     Keras 3's functions of arrays between layers
    graph, model, build            a whole model
    model_files                    the kinds of files
    files, live                    what one does with files, and with a layer of a running Keras
    description, training          what one wants to know of a file, and of a loaded model that is trained on
"""

from flax_srnn.interop.keras.config import from_config, to_config
from flax_srnn.interop.keras.description import LayerInfo, describe
from flax_srnn.interop.keras.files import convert, load_model, load_weights, save_weights
from flax_srnn.interop.keras.live import from_keras
from flax_srnn.interop.keras.training import labels

__all__ = [
    "LayerInfo", "convert", "describe", "from_config", "from_keras", "labels", "load_model", "load_weights", "save_weights",
    "to_config",
]  # fmt: skip
