from torch import Tensor, nn

class Attention(nn.Module):
    heads: int
    scale: float
    residual_connection: bool
    rescale_output_factor: float
    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.ModuleList
    norm_cross: nn.Module | None
    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        bias: bool = False,
    ) -> None: ...
    def head_to_batch_dim(self, tensor: Tensor, out_dim: int = 3) -> Tensor: ...
    def batch_to_head_dim(self, tensor: Tensor) -> Tensor: ...
    def set_processor(self, processor: object) -> None: ...

class AttnProcessor2_0:
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor: ...
