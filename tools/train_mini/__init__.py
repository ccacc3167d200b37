"""Make the embedded model: draw a painted world, train networks on it from scratch, and evaluate them."""
