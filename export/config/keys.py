"""Tables of config.json keys: what absent ones mean, other spellings, and what does not matter."""

from __future__ import annotations

from typing import Any

COMMON_DEFAULTS: dict[str, Any] = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "rope_interleave": True,
}
"""Values of absent keys, unless a family has others (export/config/families)."""

FP8_BLOCK = (128, 128)
"""Rows and columns of an FP8 matrix that share a scale, where quantization_config has no others."""

QUANTIZATION_DEFAULTS: dict[str, Any] = {
    "quant_method": "fp8",
    "weight_block_size": list(FP8_BLOCK),
}
"""Values of keys that are absent in quantization_config."""

INTEGERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "intermediate_size",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "moe_layer_freq",
    "max_position_embeddings",
)

INTEGERS_OR_NULL = {
    "q_lora_rank": None,
    "n_routed_experts": 0,
    "n_shared_experts": 0,
    "num_experts_per_tok": 0,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "bos_token_id": None,
}
"""Keys that may be null, with what null means."""

ALIASES = {
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}

HARMLESS = frozenset(
    key
    for keys in (
        # How the checkpoint was stored, trained or is to be loaded.
        "_name_or_path _attn_implementation attn_implementation auto_map dtype torch_dtype",
        "transformers_version initializer_range attention_dropout pretraining_tp use_cache",
        "ep_size aux_loss_alpha seq_aux router_aux_loss_coef output_router_logits unsloth_fixed",
        "unsloth_version use_bfloat16 torchscript pad_token_id sep_token_id tokenizer_class",
        "decoder_start_token_id",
        # MLA does not use it: qk_nope_head_dim, qk_rope_head_dim and v_head_dim size the heads.
        "head_dim",
        # Of other heads than the language model's, and of encoders.
        "id2label label2id problem_type finetuning_task task_specific_params is_decoder",
        "is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder",
        "chunk_size_feed_forward return_dict output_attentions output_hidden_states prefix",
        # Generation settings of old files; generation_config.json is what counts.
        "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups",
        "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty",
        "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences",
        "output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id",
        "remove_invalid_values exponential_decay_length_penalty suppress_tokens",
        "begin_suppress_tokens",
    )
    for key in keys.split()
)
"""Keys that leave the logits alone."""

HARMLESS_QUANTIZATION = frozenset(
    ["activation_scheme", "scale_fmt", "modules_to_not_convert", "ignored_layers", "dequantize"]
)
"""Keys of quantization_config that leave the stored weights alone: a tensor's type says what it is,
and activations are quantized shoal's own way."""
