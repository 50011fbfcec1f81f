"""The signs that rules, repair and proof ask for. Each is defined here once, so that no two of them can disagree.

`initial_values`: what nothing has touched, and what was trained beside it. `initial_value_share`: how much of its start
a moving average still holds. `stored_in_training`: layers whose stored statistics are right because training used them.
`role_swaps`: vectors in each other's place. `agreement`: when statistics are those of other data. Pure functions of
layers; nothing here reads a file or makes a finding.
"""
