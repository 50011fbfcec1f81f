"""The signs that rules, repair and proof ask for. Each is defined here once, so that no two of them can disagree.

`initial_values`: what nothing has touched, and what was trained beside it. `initial_value_share`: how much of its start
a moving average still holds. `training_mode`: how a layer ran in training, by its gradients. `stored_in_training`:
likewise by all that tells, and layers whose stored statistics are right for it.
`role_swaps`: vectors in each other's place. `agreement`: when statistics are those of other data. Pure functions of
layers; nothing here reads a file or makes a finding.
"""
