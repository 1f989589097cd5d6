"""One small file for each way in which people call their models; all must say the same tokens.

The files are loaded by path, as a user's are, and find their neighbours by themselves.
"""

from pathlib import Path

HERE = Path(__file__).parent

STYLES = {
    "a_function": "model(ids [1, new], kv_cache=cache)",
    "an_object": "model(tokens [1, new])",
    "allocated_later": "model(idx [1, new], kv_cache=cache)",
    "always_on": "model(ids [1, new])",
    "attribute_switch": "model(tokens [1, new])",
    "bare_token": "model(token [], caches=cache, pos=start)",
    "both_sides_masked": "model(src_sequence=prompt[:-1], tgt_sequence [1, all], "
    "tgt_mask=causal [1, new, all], src_mask=ones [1, prompt])",
    "cache_object": "model(in_idx [1, new], cache=cache)",
    "caches_set_up_before": "model(tokens [1, new], input_pos=positions [new], "
    "mask=causal [1, new, capacity])",
    "config_object": "model(idx [1, all])",
    "dict_out": "model(token_ids [1, new], cache=cache, return_cache=True)",
    "encoder_decoder": "model(src=prompt[:-1], tgt [1, all])",
    "flat_ids": "model(tokens [new], past=cache)",
    "generates_only": "model.generate(ids [1, all], 1)",
    "hub_like": "model(input_ids, past_key_values=cache, use_cache=True)",
    "hub_prepared": "model(**model.prepare_inputs_for_generation(ids, …)), as generate() does",
    "inference_params": "model(input_ids [1, new], inference_params=cache)",
    "keys_and_values": "model(tokens [1, new], k_cache=cache, v_cache=cache)",
    "last_row_only": "model(idx [1, all])",
    "list_of_caches": "model(tokens [1, new], caches=cache, pos=start)",
    "loss_wrapper": "model.net(x [1, new], cache=cache)",
    "mask_of_capacity": "model(tokens [1, new], input_pos=positions [new], "
    "mask=causal [1, new, capacity])",
    "mask_optional": "model(tokens [1, all], attn_mask=causal [new, all])",
    "mask_required": "model(x [1, all], mask=causal [new, all])",
    "masks_of_two_kinds": "model(tokens [1, all], attn_mask=blocked [new, all])",
    "one_token": "model(tokens [1, 1], start_pos=start)",
    "other_method": "model.decode_step(token [1, new], kv_cache=cache)",
    "past_length": "model(x [1, new], past=cache, past_length=start)",
    "positions_and_list": "model(input_ids [1, new], kv_caches=cache, "
    "position_ids=positions [1, new])",
    "prefill_and_step": "model.prefill, then model.decode_step(token [1, new], pos=start)",
    "prefill_flag": "model(tokens [1, new], is_prefill=first call)",
    "prefill_then_decode": "model.prefill, then model.decode(token [1, new], cache=cache)",
    "remembers_masks": "model(x [1, all])",
    "set_and_clear": "model(idx [1, new], input_pos=positions [new])",
    "setup_caches": "model(idx [1, new], input_pos=positions [new])",
    "shared_default": "model(tokens [1, new])",
    "sized_cache_object": "model(idx [1, new], kv_cache=cache)",
    "slices_by_itself": "model(x [1, all], cache=cache, return_intermediates=True)",
    "start_pos": "model(tokens [1, new], start_pos=start)",
    "time_first": "model(src [all, 1])",
    "use_cache_and_reset": "model(in_idx [1, new], use_cache=True)",
    "vocab_second": "model(inputs [1, all])",
    "wrapper": "model(idx [1, new], past_kv=cache, use_cache=True)",
}
"""Name of a file to the call that drives it, found without help."""

UNCACHED = {
    name
    for name, call in STYLES.items()
    if "all" in call.replace("call", "") and "cache" not in call and "generate" not in call
}
