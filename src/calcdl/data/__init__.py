"""Data: bundled sets, a user's own files, made-up problems, and batches drawn inside compiled loops.

- `load` a bundled set by name (`DATASETS`) or a CSV or NPZ file by path; then `split`, and `standardise` by
  the train rows; `rows` gives a part in the dtypes of compiled code.
- `synthetic` makes lines, sines, spirals, mixtures and teacher networks from a key: prefer them where the answer
  must be known.
- `minibatches` where an epoch of a fixed set is to be seen row by row; `full_batch` for the exact gradient;
  `fresh` where every step draws new rows, so that training error is test error.

The statistics of `standardise` come from the train rows only. `diabetes` as scikit-learn ships it is scaled
by all of its rows; where that matters, prefer `diabetes_raw`.
"""

from calcdl.data import synthetic as synthetic
from calcdl.data.dataset import Batches as Batches
from calcdl.data.dataset import Dataset as Dataset
from calcdl.data.dataset import Statistics as Statistics
from calcdl.data.dataset import TargetKind as TargetKind
from calcdl.data.dataset import fresh as fresh
from calcdl.data.dataset import full_batch as full_batch
from calcdl.data.dataset import minibatches as minibatches
from calcdl.data.dataset import polynomial_features as polynomial_features
from calcdl.data.dataset import rows as rows
from calcdl.data.dataset import split as split
from calcdl.data.dataset import standardise as standardise
from calcdl.data.dataset import together as together
from calcdl.data.files import read_file as read_file
from calcdl.data.real import DATASETS as DATASETS
from calcdl.data.real import Bundled as Bundled
from calcdl.data.real import load as load
