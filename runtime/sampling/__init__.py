"""From logits to a token, in the order of transformers: bias, penalties, mask, then the draw.

1. ``logit_bias`` is added.
2. The repetition penalty divides positive logits of tokens in the prompt or the answer, and
   multiplies negative ones.
3. The frequency penalty is subtracted for each time that a token is in the answer, the presence
   penalty once if it is there.
4. The mask excludes tokens that are not allowed.
5. Temperature, top-k, top-p and min-p, each on what the one before left over, and the draw.

The first four decide at temperature 0 too. transformers applies the same in this order (it has no
frequency and presence penalties). So does vLLM, but for its mask, which comes first and so gives
the same, and min-p, which comes before top-k there. Log-probabilities are those of the logits
before all of this: the model's own.
"""
