"""What the theory predicts, on the axes on which the other rooms measure.

- `meanfield`: random networks of great width: how the variance of the pre-activations and the size of the
  back-propagated gradient change from layer to layer, and the gain that an activation asks for. `gradient_factor` is
  the infinite depth limit; at finite depth, and always for critical networks, prefer `length_trajectory`.
- `phases`: ordered, critical or chaotic, with the depth scales, and the edge of chaos. Start here for one network's
  verdict.
- `correlations`: how alike a network finds two inputs and their gradients, layer by layer, and in the limit.
- `blocks`: the same recursions with batch or layer normalisation and skip connections; the fluctuation at finite width.
- `pairs`: expectations of functions of two dependent numbers, on which these rest.
- `dynamics`: descent on a quadratic: exact iterates, rates and the hyperparameters that reach them, and how far noise
  keeps stochastic descent from the minimum.
- `stability`: the largest stable learning rate of any Optax transformation, from the transformation itself.
- `deep_linear`: how a product of matrices learns its singular values one after the other.
- `one_unit`: one unit that learns a line.
- `games`: players who each descend on a loss of their own: the field, any solver's step about an equilibrium as a
  matrix, and what a path shows of it.
- `dirac_gan`: the smallest game of a generator and a discriminator: factors a step, and where descent arrives.
"""

from calcdl.theory import blocks as blocks
from calcdl.theory import correlations as correlations
from calcdl.theory import deep_linear as deep_linear
from calcdl.theory import dirac_gan as dirac_gan
from calcdl.theory import dynamics as dynamics
from calcdl.theory import games as games
from calcdl.theory import meanfield as meanfield
from calcdl.theory import one_unit as one_unit
from calcdl.theory import pairs as pairs
from calcdl.theory import phases as phases
from calcdl.theory import stability as stability
