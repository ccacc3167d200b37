from torch import Tensor

def get_timestep_embedding(
    timesteps: Tensor, embedding_dim: int, flip_sin_to_cos: bool = False, downscale_freq_shift: float = 1
) -> Tensor: ...
