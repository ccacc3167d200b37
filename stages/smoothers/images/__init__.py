"""Operations on images: flow, matching, light, comparison, painting. On NumPy arrays and, by `gpu`, on tensors."""
