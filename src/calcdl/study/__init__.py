"""Study: any pure function over any axes, as a few compiled programs and one labelled result.

`run` is what most users need: name the values with `axis`, hand over ``f(key, **point) -> dict of arrays``, and get an
`xarray.Dataset` with those names as coordinates. `plan`, `execute` and `collect` are its three steps, for whoever wants
to look at the plan, store batches as they end, resume, or spread them over machines. `summarise` gives quartiles over
seeds with the counts they rest on, `interval` the mean with its error; `join` puts several studies into one data set,
and `part` takes one out.
"""

from calcdl.study.axes import Axis as Axis
from calcdl.study.axes import axis as axis
from calcdl.study.program import Batch as Batch
from calcdl.study.program import Plan as Plan
from calcdl.study.program import Program as Program
from calcdl.study.program import plan as plan
from calcdl.study.results import Interval as Interval
from calcdl.study.results import collect as collect
from calcdl.study.results import interval as interval
from calcdl.study.results import join as join
from calcdl.study.results import part as part
from calcdl.study.results import run as run
from calcdl.study.results import summarise as summarise
from calcdl.study.runner import STATUSES as STATUSES
from calcdl.study.runner import execute as execute
