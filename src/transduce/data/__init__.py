"""Text in, batches out: fields, files, corpora, batching by length, metrics."""

from .batching import Batch, Corpus, Encoded, Example, Loader, Prepared, batches, encode, prepare
from .fields import DataSpec, TextField, learn_field
from .metrics import ErrorRates, bootstrap, edit_distance, error_rates
from .points import PointField, PositionField
from .sources import anywhere, load_corpus

__all__ = [
    "Batch",
    "Corpus",
    "DataSpec",
    "Encoded",
    "ErrorRates",
    "Example",
    "Loader",
    "PointField",
    "PositionField",
    "Prepared",
    "TextField",
    "anywhere",
    "batches",
    "bootstrap",
    "edit_distance",
    "encode",
    "error_rates",
    "learn_field",
    "load_corpus",
    "prepare",
]
