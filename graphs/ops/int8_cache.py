"""shoal::FloatLatentAttentionInt8Cache and shoal::LatentAttentionInt8Cache.

Latent attention over a cache whose latents are int8 codes with a scale for each block and whose
rope keys are float16; everything else is as in latent_attention.py.

B batch (1), T new tokens, S cached tokens (the new ones included), H heads, C latent size, R rope
size, N no-rope query size, V value size; Q = cache_block_size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.graphs.ops.latent_attention import (
    ATTEND,
    FLOAT_LATENT_ATTENTION,
    PAST_AND_SIZES,
    attend,
)
from shoal.graphs.ops.spec import OpSpec, fixed_body
from shoal.graphs.quantize import Codes, Floats, dequantize_blocks, quantize_blocks

Int8Cache = tuple[Codes, Floats, NDArray[np.float16]]
"""Codes [B,S,C], scales [B,S,C/Q] and rope keys [B,S,R]."""

_NEW = {
    "q_nope": "f[B,T,H,N]",
    "q_rope": "f[B,T,H,R]",
    "latent": "f[B,T,C]",
    "k_rope": "f[B,T,R]",
    "cache": "u[B,S,C]",
    "cache_scales": "f[B,S,C/cache_block_size]",
    "cache_rope": "h[B,S,R]",
}
_OUTPUTS = {
    "y": "f[B,T,H,V]",
    "cache_out": "u[B,S,C]",
    "cache_scales_out": "f[B,S,C/cache_block_size]",
    "cache_rope_out": "h[B,S,R]",
}

FLOAT_LATENT_ATTENTION_INT8_CACHE = OpSpec(
    name="FloatLatentAttentionInt8Cache",
    doc=(
        "FloatLatentAttention over an int8 cache. A new latent is quantized in blocks of "
        "cache_block_size: scale = max|c| / 127, code = round(c / scale) + 128, half to even, "
        "scale 0 and code 128 where the scale would be below the smallest normal float32. Rope "
        "keys are rounded to float16. Queries attend to what the cache holds, the new rows "
        "included."
    ),
    source=FLOAT_LATENT_ATTENTION.source + "; blocks as in graphs/quantize.py",
    inputs={**_NEW, "w_uk": "f[H,N,C]", "w_uv": "f[H,V,C]"},
    outputs=_OUTPUTS,
    attributes={"softmax_scale": "float", "cache_block_size": "int"},
    uses=("DequantizeBlocks",),
    # See FloatLatentAttention about TensorScatter. Rows are gathered as [S, C], because
    # onnxruntime gives each row of the first dimension to a thread.
    body=fixed_body(
        PAST_AND_SIZES
        + """
        block_0d = Constant <value_int: int = @cache_block_size> ()
        zero = Constant <value_ints: ints = [0]> ()
        block = Unsqueeze (block_0d, zero)
        num_blocks = Div (C, block)
        blocks_shape = Concat <axis: int = 0> (first, T, num_blocks, block)
        blocks = Reshape <allowzero: int = 1> (latent, blocks_shape)
        magnitudes = Abs (blocks)
        peaks = ReduceMax <keepdims: int = 1> (magnitudes, rest)
        largest = Constant <value_float: float = 127.0> ()
        raw_scales = Div (peaks, largest)
        smallest = Constant <value_float: float = 1.17549435e-38> ()
        is_too_small = Less (raw_scales, smallest)
        no_scale = Constant <value_float: float = 0.0> ()
        one = Constant <value_float: float = 1.0> ()
        new_scales = Where (is_too_small, no_scale, raw_scales)
        reciprocals = Div (one, raw_scales)
        factors = Where (is_too_small, no_scale, reciprocals)
        multiples = Mul (blocks, factors)
        signed = Round (multiples)
        zero_point = Constant <value_float: float = 128.0> ()
        unsigned = Add (signed, zero_point)
        code_blocks = Cast <to: int = 2> (unsigned)
        codes_shape = Concat <axis: int = 0> (first, T, C)
        scales_shape = Concat <axis: int = 0> (first, T, num_blocks)
        new_codes = Reshape <allowzero: int = 1> (code_blocks, codes_shape)
        new_scale_rows = Reshape <allowzero: int = 1> (new_scales, scales_shape)
        new_ropes = Cast <to: int = 10> (k_rope)
        cache_out = TensorScatter <axis: int = 1> (cache, new_codes, past)
        cache_scales_out = TensorScatter <axis: int = 1> (cache_scales, new_scale_rows, past)
        cache_rope_out = TensorScatter <axis: int = 1> (cache_rope, new_ropes, past)

        codes_SC = Squeeze (cache_out, zero)
        scales_SQ = Squeeze (cache_scales_out, zero)
        latents_SC = shoal.DequantizeBlocks <block_size: int = @cache_block_size>
            (codes_SC, scales_SQ)
        latents = Unsqueeze (latents_SC, zero)
        ropes = Cast <to: int = 1> (cache_rope_out)
        latent_rows = Concat <axis: int = -1> (latents, ropes)
"""
        + ATTEND
    ),
)

LATENT_ATTENTION_INT8_CACHE = OpSpec(
    name="LatentAttentionInt8Cache",
    doc="FloatLatentAttentionInt8Cache with int8 w_uk and w_uv, in blocks of block_size along C.",
    source=FLOAT_LATENT_ATTENTION_INT8_CACHE.source,
    inputs={
        **_NEW,
        "w_uk": "u[H,N,C]",
        "w_uk_scales": "f[H,N,C/block_size]",
        "w_uv": "u[H,V,C]",
        "w_uv_scales": "f[H,V,C/block_size]",
    },
    outputs=_OUTPUTS,
    attributes={"softmax_scale": "float", "block_size": "int", "cache_block_size": "int"},
    uses=("DequantizeBlocks", "FloatLatentAttentionInt8Cache"),
    body=fixed_body("""
        float_w_uk = shoal.DequantizeBlocks <block_size: int = @block_size> (w_uk, w_uk_scales)
        float_w_uv = shoal.DequantizeBlocks <block_size: int = @block_size> (w_uv, w_uv_scales)
        y, cache_out, cache_scales_out, cache_rope_out =
            shoal.FloatLatentAttentionInt8Cache
            <softmax_scale: float = @softmax_scale, cache_block_size: int = @cache_block_size>
            (q_nope, q_rope, latent, k_rope, cache, cache_scales, cache_rope, float_w_uk,
            float_w_uv)
    """),
)


def float_latent_attention_int8_cache(
    q_nope: Floats,
    q_rope: Floats,
    latent: Floats,
    k_rope: Floats,
    cache: Codes,
    cache_scales: Floats,
    cache_rope: NDArray[np.float16],
    w_uk: Floats,
    w_uv: Floats,
    softmax_scale: float,
) -> tuple[Floats, Int8Cache]:
    """NumPy reference of FloatLatentAttentionInt8Cache; shapes as in its spec.

    Returns (y, the three cache outputs); the inputs are not changed.
    """
    codes, scales, ropes = cache.copy(), cache_scales.copy(), cache_rope.copy()
    new = slice(cache.shape[1] - latent.shape[1], None)
    block_size = cache.shape[-1] // cache_scales.shape[-1]
    codes[:, new], scales[:, new] = quantize_blocks(latent, block_size)
    ropes[:, new] = k_rope
    latents_BSC = dequantize_blocks(codes, scales)
    ropes_BSR = ropes.astype(np.float32)
    y = attend(q_nope, q_rope, latents_BSC, ropes_BSR, w_uk, w_uv, softmax_scale)
    return y, (codes, scales, ropes)
