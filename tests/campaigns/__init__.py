"""Campaigns of reliability: many random cases of one kind, seeded and bounded in time.

    python -m tests.campaigns NAME --n 100 --seed 0 --minutes 30

Each module here is a campaign. It has `PROMISE`, the sentence that it checks, `SHORT`, the number
of cases that its test runs, and `run(n, seed, deadline)`, which returns an `Outcome`.
"""
