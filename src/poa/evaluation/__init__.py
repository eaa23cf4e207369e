"""How good every size is: frozen features, k-NN scores, and what a size costs."""
