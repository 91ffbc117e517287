//! `nano` with every part and few of each, for tests that train.

/// What `--set` is given.
pub const TINY: &[&str] = &[
    "hidden=32",
    "depth=2",
    "heads=2",
    "q_rank=16",
    "kv_rank=16",
    "nope=8",
    "rope=4",
    "value=8",
    "inner=48",
    "expert_inner=16",
    "n_experts=4",
    "groups=2",
    "kept_groups=1",
    "sequence=32",
];
