"""Log-ratios of tokens: the chunked output layer, layouts of rows, and how each kind of model is called."""

from pl_prefopt.logprobs.chunked_head import Head
from pl_prefopt.logprobs.scoring import TokenScores, score_tokens, token_log_probs

__all__ = ["Head", "TokenScores", "score_tokens", "token_log_probs"]
