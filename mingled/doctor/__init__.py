"""`mingle doctor`, `nodes` and `hosts`: facts are gathered, here and at the other daemons
(`gather_*`), and judged by pure functions (`checks_*`).
"""
