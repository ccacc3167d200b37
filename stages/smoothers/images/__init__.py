"""Operations on images: flow, matching, light, comparison, painting; on NumPy arrays and, in `gpu`, on torch tensors."""
