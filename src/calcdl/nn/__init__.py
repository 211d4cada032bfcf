"""Networks as functions of a pytree: activations, initialisers, losses, penalties.

- `activations`: element-wise functions with closed-form derivatives. tanh and gelu are smooth, relu is cheap;
  sigmoid is here to show how gradients vanish.
- `initialisers`: random weights. glorot_normal suits odd sigmoids such as tanh, he_normal the relu family, orthogonal
  deep linear or nearly linear networks.
- `layers`: a dense layer, and a deep stack of them scanned, so that compile time does not grow with depth.
- `losses`: element-wise, the caller reduces. squared_error for numbers, softmax_cross_entropy for classes; huber where
  outliers are expected.
- `regularisers`: penalties on a tree of weights. l2 shrinks all of them, l1 sets some to zero, elastic_net does both.

Each module ends with a dictionary of its members by name, which is how a config reaches them. What most programs need
is at hand here too: `nn.stack`, `nn.ACTIVATIONS`, `nn.squared_error`.
"""

from calcdl.nn import activations as activations
from calcdl.nn import initialisers as initialisers
from calcdl.nn import layers as layers
from calcdl.nn import losses as losses
from calcdl.nn import regularisers as regularisers
from calcdl.nn.activations import ACTIVATIONS as ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS as INITIALISERS
from calcdl.nn.layers import Layer as Layer
from calcdl.nn.layers import Stack as Stack
from calcdl.nn.layers import dense as dense
from calcdl.nn.layers import stack as stack
from calcdl.nn.losses import LOSSES as LOSSES
from calcdl.nn.losses import softmax_cross_entropy as softmax_cross_entropy
from calcdl.nn.losses import squared_error as squared_error
from calcdl.nn.regularisers import REGULARISERS as REGULARISERS
