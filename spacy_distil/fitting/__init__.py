"""A student for a budget: what it may cost is given, and the best pipeline that fits is found.

Read in this order: `run` (from budget to pipeline), `settings`, `candidates` (which students are
possible), `costs` (what each costs, measured before it is trained), `halving` (which ones go on),
`report`, `family` (all of the best trade-offs in one pipeline, chosen from where it runs).
"""
