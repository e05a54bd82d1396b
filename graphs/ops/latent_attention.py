"""shoal::FloatLatentAttention and shoal::LatentAttention: attention over a cache of latents.

The cache is float32 or float16; int8_cache.py has the same ops over an int8 cache.

B batch (1), T new tokens, S cached tokens (the new ones included), H heads, C latent size, R rope
size, N no-rope query size, V value size. A cache row is the latent (C) and the rotated rope key
(R), so X = C + R; keys and values of the heads are never stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.graphs.ops.spec import LONGEST_SHORT_STEP, OpSpec, fixed_body
from shoal.graphs.quantize import Codes, Floats, dequantize_blocks

CacheRows = NDArray[np.float32] | NDArray[np.float16]

_CACHE_DOC = (
    "The rows concat(latent, k_rope), rounded to the cache's type, are written at S-T..S-1 of the "
    "cache; query t sees rows 0..S-T+t. "
)

PAST_AND_SIZES = """
        first = Constant <value_ints: ints = [1]> ()
        rest = Constant <value_ints: ints = [-1]> ()
        T = Shape <start: int = 1, end: int = 2> (latent)
        S = Shape <start: int = 1, end: int = 2> (cache)
        C = Shape <start: int = 2> (latent)
        N = Shape <start: int = 3> (q_nope)
        H = Shape <start: int = 2, end: int = 3> (q_nope)
        past = Sub (S, T)
"""

# The absorbed form: (q_nope w_uk) c_s equals q_nope (w_uk c_s), so all heads attend to the cache
# itself (latent_rows, float32 [B,S,X]) and their queries are the rows of one matrix [T*H, X].
# A token of a short step must get the same bits as alone, so its products with w_uk and w_uv have
# one row each (A of them with M = 1 row): onnxruntime multiplies a single row in another order than
# several. A long prompt is one product of T rows (A = 1, M = T). Shapes are spelled out (allowzero,
# no -1) because T is 0 where a graph for several contexts has fewer of them.
ATTEND = """
        X = Shape <start: int = 2> (latent_rows)
        longest = Constant <value_ints: ints = [LONGEST_SHORT_STEP]> ()
        is_short = LessOrEqual (T, longest)
        A = Where (is_short, T, first)
        M = Where (is_short, first, T)
        AMHN = Concat <axis: int = 0> (A, M, H, N)
        q_nope_AMHN = Reshape <allowzero: int = 1> (q_nope, AMHN)
        q_nope_AHMN = Transpose <perm: ints = [0, 2, 1, 3]> (q_nope_AMHN)
        q_latent_AHMC = MatMul (q_nope_AHMN, w_uk)
        q_latent_AMHC = Transpose <perm: ints = [0, 2, 1, 3]> (q_latent_AHMC)
        BTHC = Concat <axis: int = 0> (first, T, H, C)
        q_latent_BTHC = Reshape <allowzero: int = 1> (q_latent_AMHC, BTHC)
        q_BTHX = Concat <axis: int = -1> (q_latent_BTHC, q_rope)
        TH = Mul (T, H)
        q_shape = Concat <axis: int = 0> (first, TH, X)
        q_rows = Reshape <allowzero: int = 1> (q_BTHX, q_shape)
        scale = Constant <value_float: float = @softmax_scale> ()
        q_scaled = Mul (q_rows, scale)
        rows_BXS = Transpose <perm: ints = [0, 2, 1]> (latent_rows)
        score_rows = MatMul (q_scaled, rows_BXS)

        start = Constant <value_int: int = 0> ()
        step = Constant <value_int: int = 1> ()
        past_0d = Squeeze (past)
        S_0d = Squeeze (S)
        key_positions = Range (start, S_0d, step)
        query_positions = Range (past_0d, S_0d, step)
        query_column = Unsqueeze (query_positions, rest)
        is_visible_TS = LessOrEqual (key_positions, query_column)
        visible = Constant <value_float: float = 0.0> ()
        hidden = Constant <value_float: float = -inf> ()
        mask_TS = Where (is_visible_TS, visible, hidden)
        mask_T1S = Unsqueeze (mask_TS, first)

        scores_shape = Concat <axis: int = 0> (first, T, H, S)
        scores_BTHS = Reshape <allowzero: int = 1> (score_rows, scores_shape)
        masked_BTHS = Add (scores_BTHS, mask_T1S)
        shares_BTHS = Softmax <axis: int = -1> (masked_BTHS)
        shares_shape = Concat <axis: int = 0> (first, TH, S)
        share_rows = Reshape <allowzero: int = 1> (shares_BTHS, shares_shape)

        mean_rows = MatMul (share_rows, latent_rows)
        AMHX = Concat <axis: int = 0> (A, M, H, X)
        mean_AMHX = Reshape <allowzero: int = 1> (mean_rows, AMHX)
        from_0 = Constant <value_ints: ints = [0]> ()
        last_axis = Constant <value_ints: ints = [3]> ()
        mean_AMHC = Slice (mean_AMHX, from_0, C, last_axis)
        mean_AHMC = Transpose <perm: ints = [0, 2, 1, 3]> (mean_AMHC)
        w_uv_HCV = Transpose <perm: ints = [0, 2, 1]> (w_uv)
        y_AHMV = MatMul (mean_AHMC, w_uv_HCV)
        y_AMHV = Transpose <perm: ints = [0, 2, 1, 3]> (y_AHMV)
        V = Shape <start: int = 1, end: int = 2> (w_uv)
        BTHV = Concat <axis: int = 0> (first, T, H, V)
        y = Reshape <allowzero: int = 1> (y_AMHV, BTHV)
""".replace("LONGEST_SHORT_STEP", str(LONGEST_SHORT_STEP))

FLOAT_LATENT_ATTENTION = OpSpec(
    name="FloatLatentAttention",
    doc=(
        _CACHE_DOC + "Head h has keys k_s = concat(w_uk[h] c_s, k_rope_s) and values "
        "v_s = w_uv[h] c_s of the cached latents c_s; y = softmax(q k^T * softmax_scale) v. "
        "q_nope, q_rope and k_rope are projected and rotated already. B is 1, T may be 0."
    ),
    source="DeepSeek-V2, arXiv 2405.04434, 2.1 and eq. 41-47 (weight absorption)",
    inputs={
        "q_nope": "f[B,T,H,N]",
        "q_rope": "f[B,T,H,R]",
        "latent": "f[B,T,C]",
        "k_rope": "f[B,T,R]",
        "cache": "c[B,S,C+R]",
        "w_uk": "f[H,N,C]",
        "w_uv": "f[H,V,C]",
    },
    outputs={"y": "f[B,T,H,V]", "cache_out": "c[B,S,C+R]"},
    attributes={"softmax_scale": "float"},
    # TensorScatter updates the cache in place when one buffer is bound to input and output, for
    # which nothing else may read the cache input; of CastLike only the type remains.
    body=fixed_body(
        PAST_AND_SIZES
        + """
        rows = Concat <axis: int = -1> (latent, k_rope)
        typed_rows = CastLike (rows, cache)
        cache_out = TensorScatter <axis: int = 1> (cache, typed_rows, past)
        latent_rows = Cast <to: int = 1> (cache_out)
"""
        + ATTEND
    ),
)

LATENT_ATTENTION = OpSpec(
    name="LatentAttention",
    doc=(
        "FloatLatentAttention with int8 w_uk and w_uv, in blocks of block_size along C; queries "
        "and attention stay float32."
    ),
    source=FLOAT_LATENT_ATTENTION.source,
    inputs={
        "q_nope": "f[B,T,H,N]",
        "q_rope": "f[B,T,H,R]",
        "latent": "f[B,T,C]",
        "k_rope": "f[B,T,R]",
        "cache": "c[B,S,C+R]",
        "w_uk": "u[H,N,C]",
        "w_uk_scales": "f[H,N,C/block_size]",
        "w_uv": "u[H,V,C]",
        "w_uv_scales": "f[H,V,C/block_size]",
    },
    outputs={"y": "f[B,T,H,V]", "cache_out": "c[B,S,C+R]"},
    attributes={"softmax_scale": "float", "block_size": "int"},
    uses=("DequantizeBlocks", "FloatLatentAttention"),
    body=fixed_body("""
        float_w_uk = shoal.DequantizeBlocks <block_size: int = @block_size> (w_uk, w_uk_scales)
        float_w_uv = shoal.DequantizeBlocks <block_size: int = @block_size> (w_uv, w_uv_scales)
        y, cache_out = shoal.FloatLatentAttention <softmax_scale: float = @softmax_scale>
            (q_nope, q_rope, latent, k_rope, cache, float_w_uk, float_w_uv)
    """),
)


def float_latent_attention(
    q_nope: Floats,
    q_rope: Floats,
    latent: Floats,
    k_rope: Floats,
    cache: CacheRows,
    w_uk: Floats,
    w_uv: Floats,
    softmax_scale: float,
) -> tuple[Floats, CacheRows]:
    """NumPy reference of FloatLatentAttention; shapes as in its spec.

    Returns (y, cache_out); ``cache`` itself is not changed.
    """
    T, C = latent.shape[1:]
    cache_out = cache.copy()
    cache_out[:, cache.shape[1] - T :] = np.concatenate([latent, k_rope], axis=-1)
    rows_BSX = cache_out.astype(np.float32)
    y = attend(q_nope, q_rope, rows_BSX[..., :C], rows_BSX[..., C:], w_uk, w_uv, softmax_scale)
    return y, cache_out


def attend(
    q_nope: Floats,
    q_rope: Floats,
    latents_BSC: Floats,
    ropes_BSR: Floats,
    w_uk: Floats,
    w_uv: Floats,
    softmax_scale: float,
) -> Floats:
    """Attention in the expanded form: keys and values of every head are written out.

    The last T of the S rows belong to the queries. Returns y [B,T,H,V].
    """
    T, S = q_nope.shape[1], latents_BSC.shape[1]
    keys_BHSN = np.einsum("bsc,hnc->bhsn", latents_BSC, w_uk, optimize=True)
    values_BHSV = np.einsum("bsc,hvc->bhsv", latents_BSC, w_uv, optimize=True)
    scores_BHTS = np.einsum("bthn,bhsn->bhts", q_nope, keys_BHSN, optimize=True)
    scores_BHTS += np.einsum("bthr,bsr->bhts", q_rope, ropes_BSR, optimize=True)
    is_visible_TS = np.arange(S) <= np.arange(S - T, S)[:, None]
    masked_BHTS = np.where(is_visible_TS, scores_BHTS * np.float32(softmax_scale), -np.inf)
    exps_BHTS = np.exp(masked_BHTS - masked_BHTS.max(axis=-1, keepdims=True))
    shares_BHTS = exps_BHTS / exps_BHTS.sum(axis=-1, keepdims=True)
    y: Floats = np.einsum("bhts,bhsv->bthv", shares_BHTS, values_BHSV, optimize=True)
    return y.astype(np.float32, order="C")


def latent_attention(
    q_nope: Floats,
    q_rope: Floats,
    latent: Floats,
    k_rope: Floats,
    cache: CacheRows,
    w_uk: Codes,
    w_uk_scales: Floats,
    w_uv: Codes,
    w_uv_scales: Floats,
    softmax_scale: float,
) -> tuple[Floats, CacheRows]:
    """NumPy reference of LatentAttention; shapes as in its spec."""
    return float_latent_attention(
        q_nope,
        q_rope,
        latent,
        k_rope,
        cache,
        dequantize_blocks(w_uk, w_uk_scales),
        dequantize_blocks(w_uv, w_uv_scales),
        softmax_scale,
    )
