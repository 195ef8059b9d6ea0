"""Text in, batches out: fields, files, corpora, batching by length, metrics."""

from .batching import Batch, Corpus, Encoded, Example, Loader, Prepared, batches, encode, prepare
from .fields import DataSpec, TextField
from .metrics import ErrorRates, bootstrap, edit_distance, error_rates
from .sources import anywhere, load_corpus

__all__ = [
    "Batch",
    "Corpus",
    "DataSpec",
    "Encoded",
    "ErrorRates",
    "Example",
    "Loader",
    "Prepared",
    "TextField",
    "anywhere",
    "batches",
    "bootstrap",
    "edit_distance",
    "encode",
    "error_rates",
    "load_corpus",
    "prepare",
]
