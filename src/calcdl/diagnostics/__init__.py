"""Diagnostics: what a network's gradients and activations do, layer by layer, and what that means.

Begin with `inspect`: from one gradient of any pytree model (dictionaries, Flax, Equinox) it makes a table of the
parameters and says what is wrong.

To see inside, mark values of any pure function with `tap`. `capture` shows them with the gradient that flows back
through each, `observe` the values alone. `by_layer` joins the taps of a stack; of these `signal_norms`,
`second_moments`, `correlations`, `dead_units` and `saturated_units` make one number a layer, and `attribute` divides
each layer's gain among weights, activation, normalisation and skip connection. `health` turns signals into a factor a
layer with its confidence interval, and into words.

Examples among themselves: `gradient_norms`, `gradient_coherence` and `noise_scale` of any loss of one example; in dense
layers `layer_gradient_norms`, `layer_coherence` and `layer_noise_scale` have them from the taps at next to no cost.
Jacobians: `singular_values` exactly, `lanczos_singular_values` of large ones.

Of a classifier's answers `reliability` says whether events of probability p happen in a share p of the cases.

Inside a training loop use the probes `gradient_by_layer` and `update_to_weight_ratio`, which read the solver's own
record and cost no further pass.
"""

from calcdl.diagnostics import health as health
from calcdl.diagnostics.attribution import Attribution as Attribution
from calcdl.diagnostics.attribution import attribute as attribute
from calcdl.diagnostics.calibration import Reliability as Reliability
from calcdl.diagnostics.calibration import reliability as reliability
from calcdl.diagnostics.dense_gradients import layer_coherence as layer_coherence
from calcdl.diagnostics.dense_gradients import layer_gradient_norms as layer_gradient_norms
from calcdl.diagnostics.dense_gradients import layer_noise_scale as layer_noise_scale
from calcdl.diagnostics.examples import NoiseScale as NoiseScale
from calcdl.diagnostics.examples import gradient_coherence as gradient_coherence
from calcdl.diagnostics.examples import gradient_norms as gradient_norms
from calcdl.diagnostics.examples import noise_scale as noise_scale
from calcdl.diagnostics.examples import per_example_gradients as per_example_gradients
from calcdl.diagnostics.inspection import Inspection as Inspection
from calcdl.diagnostics.inspection import Parameter as Parameter
from calcdl.diagnostics.inspection import inspect as inspect
from calcdl.diagnostics.jacobians import SingularValues as SingularValues
from calcdl.diagnostics.jacobians import lanczos_singular_values as lanczos_singular_values
from calcdl.diagnostics.jacobians import singular_values as singular_values
from calcdl.diagnostics.probes import by_layer as by_layer
from calcdl.diagnostics.probes import correlations as correlations
from calcdl.diagnostics.probes import dead_units as dead_units
from calcdl.diagnostics.probes import gradient_by_layer as gradient_by_layer
from calcdl.diagnostics.probes import layer_norms as layer_norms
from calcdl.diagnostics.probes import saturated_units as saturated_units
from calcdl.diagnostics.probes import second_moments as second_moments
from calcdl.diagnostics.probes import signal_norms as signal_norms
from calcdl.diagnostics.probes import update_to_weight_ratio as update_to_weight_ratio
from calcdl.diagnostics.taps import Captured as Captured
from calcdl.diagnostics.taps import Tap as Tap
from calcdl.diagnostics.taps import capture as capture
from calcdl.diagnostics.taps import observe as observe
from calcdl.diagnostics.taps import tap as tap
