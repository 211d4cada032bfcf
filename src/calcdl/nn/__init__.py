"""Networks as functions of a pytree: activations, initialisers, losses, penalties.

- `activations`: element-wise functions with closed-form derivatives. tanh and gelu are smooth, relu is cheap;
  sigmoid is here to show how gradients vanish.
- `initialisers`: random weights. glorot_normal suits odd sigmoids such as tanh, he_normal the relu family, orthogonal
  deep linear or nearly linear networks, delta_orthogonal deep convolutions.
- `layers`: dense layer and convolution, pooling, dropout.
- `normalisation`: batch_norm ties the examples of a batch together and needs statistics at inference; layer_norm
  treats each example alone, and is the safer choice for small batches.
- `networks`: a deep stack of dense layers or convolutions, plain, normalised or residual, scanned, so that compile time
  does not grow with depth; and a small convnet for images.
- `losses`: element-wise, the caller reduces. squared_error for numbers, softmax_cross_entropy for classes; huber where
  outliers are expected.
- `kernels`: scalar products of examples after a map that is never formed, and the support vector machine that rests on
  them. linear first; rbf where the boundary bends.
- `regularisers`: penalties on a tree of weights. l2 shrinks all of them, l1 sets some to zero, elastic_net does both.
- `variational`: autoencoders with random codes: the terms of their bound, and the gradient through a draw.
- `adversarial`: the games of a generator and a discriminator, and the penalties on slopes that bring them to rest.

Each module ends with a dictionary of its members by name, which is how a config reaches them. What most programs need
is at hand here too: `nn.stack`, `nn.ACTIVATIONS`, `nn.squared_error`.
"""

from calcdl.nn import activations as activations
from calcdl.nn import adversarial as adversarial
from calcdl.nn import initialisers as initialisers
from calcdl.nn import kernels as kernels
from calcdl.nn import layers as layers
from calcdl.nn import losses as losses
from calcdl.nn import networks as networks
from calcdl.nn import normalisation as normalisation
from calcdl.nn import regularisers as regularisers
from calcdl.nn import variational as variational
from calcdl.nn.activations import ACTIVATIONS as ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS as INITIALISERS
from calcdl.nn.kernels import KERNELS as KERNELS
from calcdl.nn.layers import Layer as Layer
from calcdl.nn.layers import average_pool as average_pool
from calcdl.nn.layers import convolution as convolution
from calcdl.nn.layers import dense as dense
from calcdl.nn.layers import dropout as dropout
from calcdl.nn.layers import max_pool as max_pool
from calcdl.nn.losses import LOSSES as LOSSES
from calcdl.nn.losses import softmax_cross_entropy as softmax_cross_entropy
from calcdl.nn.losses import squared_error as squared_error
from calcdl.nn.networks import ARCHITECTURES as ARCHITECTURES
from calcdl.nn.networks import Network as Network
from calcdl.nn.networks import convnet as convnet
from calcdl.nn.networks import convolutional_stack as convolutional_stack
from calcdl.nn.networks import stack as stack
from calcdl.nn.normalisation import NORMALISATIONS as NORMALISATIONS
from calcdl.nn.normalisation import Normalisation as Normalisation
from calcdl.nn.normalisation import Statistics as Statistics
from calcdl.nn.normalisation import batch_norm as batch_norm
from calcdl.nn.normalisation import batch_statistics as batch_statistics
from calcdl.nn.normalisation import layer_norm as layer_norm
from calcdl.nn.normalisation import running_statistics as running_statistics
from calcdl.nn.regularisers import REGULARISERS as REGULARISERS
