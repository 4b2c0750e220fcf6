"""How good it is: metrics with intervals, and the protocols that use them."""
