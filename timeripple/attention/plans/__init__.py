"""Which rows stand for which tokens, and what that saves: one file a granularity, `curve` for what they share.

Everything happens in two stages. A granularity measures query and key once, which gives a curve that knows the saving
at every threshold (`curve.saving(theta)`) and builds the plan at one of them (`curve.plan(call, theta)`). A plan is
carried out by PyTorch (`plan.carry_out(call)`) or by the kernels of `triton_backend`.

The paper (arXiv 2511.12035) reuses single (token, channel) entries: `channel`. Where neighbours agree in all channels
of a head, reuse is algebra on whole rows: |G| identical key rows are one row with log|G| added to its logits and the
mean of the values, and identical query rows have one output: `token`. `tile` decides per tile of queries which key
windows are computed and which are reused through one representative.

Heads of all batch entries are planned at once and independently, as `heads` = batch * heads rows of every tensor.
"""
