"""Diagnostics: what a network's gradients and activations do, layer by layer, and what that means.

`signals` runs one forward and one backward pass and keeps what they saw; the other functions reduce that to one number
a layer: `layer_norms`, `second_moments`, `dead_units`, `saturated_units`. Inside a training loop use the probes
`gradient_by_layer` and `update_to_weight_ratio`, which read the solver's own record and cost no further pass. `health`
turns signals into a factor a layer with its confidence interval, and into words. For any other function mark what is to
be seen with `tap` and let `capture` show it, with the gradient that flows back through it.
"""

from calcdl.diagnostics import health as health
from calcdl.diagnostics.attribution import Attribution as Attribution
from calcdl.diagnostics.attribution import attribute as attribute
from calcdl.diagnostics.dense_gradients import layer_coherence as layer_coherence
from calcdl.diagnostics.dense_gradients import layer_gradient_norms as layer_gradient_norms
from calcdl.diagnostics.dense_gradients import layer_noise_scale as layer_noise_scale
from calcdl.diagnostics.examples import gradient_coherence as gradient_coherence
from calcdl.diagnostics.examples import gradient_norms as gradient_norms
from calcdl.diagnostics.examples import noise_scale as noise_scale
from calcdl.diagnostics.examples import per_example_gradients as per_example_gradients
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
