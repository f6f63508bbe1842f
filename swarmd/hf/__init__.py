"""Models of the swarm with the interface of `transformers`.

A script that has `AutoModelForCausalLM` takes `swarmd.AutoDistributedModelForCausalLM` in its place
(docs/python.md). From above: `auto` (from_pretrained), `causal_lm` and `classifier` (the models),
`distributed` (what they share: a batch through the blocks), `batch_inputs` (what callers give),
`cache` (past_key_values) over `rows` (which session runs what; pure), and, on the event loop of
`loop_thread`, `row_sessions` (a chain of hops for each row) over `swarm_link` (who serves).
"""
