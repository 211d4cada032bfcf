"""What the theory predicts, on the axes on which the other rooms measure.

- `meanfield`: random networks of great width: how the variance of the pre-activations and the size of the
  back-propagated gradient change from layer to layer, and the gain that an activation asks for. `gradient_factor` is
  the infinite depth limit; at finite depth, and always for critical networks, prefer `length_trajectory`.
"""

from calcdl.theory import meanfield as meanfield
