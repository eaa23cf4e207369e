"""One HTML file that shows all sizes of a run beside one another: scores, costs, training, pictures."""
