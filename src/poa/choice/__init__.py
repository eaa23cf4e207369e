"""Which size to ship: times and memory of networks on a machine, budgets, and the best size within them."""
