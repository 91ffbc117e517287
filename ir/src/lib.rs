//! The IR: tensors and what happens to them.
//!
//! # Containers
//! A [`module::Module`] has a table of dim symbols, a table of *stores* (weights, states,
//! schedules: what lives between runs, under a name) and functions, callees before callers. A
//! function is one block of ops in SSA form: parameters, ops, results. There are no branches and no
//! nested regions: `call`, `repeat` and `fused` name another function.
//!
//! # Types
//! An element type; dims, each a number times symbols (`2*B*S`); for quantized values the group
//! scales; for sharded values the mesh axis of each dim; and whether it is a *state*.
//! `bf16[B{dp}, S, 7168]`, `e4m3<1x128, f32>[B, S, 7168]`, `state f32[58, 256]`.
//!
//! # Sizes
//! A symbol is *bounded* (`S <= 4096`, a launch argument) or *ragged* (rows in segments, offsets on
//! the device). All other sizes are numbers.
//!
//! # State
//! Weights that a step changes, optimizer moments, caches and router biases are values of state
//! type. An op with the `State` trait consumes one and returns its successor; a consumed state may
//! not be used again, and what was `read` from it may not be used after that. A function that
//! changes states lists the pairs in `donates (param -> result)`: both are one storage.
//!
//! # Repetition
//! `repeat` is a scan: carried values, slices of stacked operands, values all runs share, stacked
//! results. Layers stay rolled: the derivative of a repeat is a reversed repeat that reads the
//! stacked values its forward saved.
//!
//! # Backward in two halves
//! `autodiff` makes for a function `f`: `f.fwd`, which also returns what it saves; `f.bwd_input`,
//! the derivatives of its inputs; `f.bwd_weight`, those of its weights, from saved values and what
//! `bwd_input` hands on. They can be scheduled apart.
//!
//! # Provenance
//! Every op has at least one [`module::Span`], a place in a `.model` file; a fused op has several.
//!
//! # Text
//! [`print`](text) and [`parse`](text) agree: `parse(print(m))` prints as `m` does.
//!
//! ```text
//! weft-ir 1
//! module DeepSeekV3
//! dims { B <= 64, S <= 4096, R = ragged(8) 2*B*S }
//! axes { dp = 8 }
//! weight @norm.weight : f32[7168] at "model.norm.weight" init 1
//! weight @layers.1.mlp.experts.up_proj.weight : f32[58, 256, 2048, 7168]
//!     at "model.layers.{i}.mlp.experts.{j}.up_proj.weight" from [3, 0] init drawn
//! state @layers.1.mlp.gate.e_score_correction_bias : f32[58, 256] at "..." from [3] init 0
//! schedule @lambda init 0.3
//!
//! func @block(%x: f32[B, S, 7168], %w: f32[7168]) -> (f32[B, S, 7168]) {
//!   %n, %r = rms_norm %x, %w {eps = 1e-6} : f32[B, S, 7168], f32[B, S]   # block.model:12:9
//!   %1 = add %x, %n : f32[B, S, 7168]                                     # block.model:13:3, block.model:14:3
//!   return %1
//! }
//! ```
//! [`text`] has the grammar. A scalar is `f32[]`; a name of other characters than letters, digits,
//! `_` and `.` stands in quotes; values without a name are numbered as they appear.
//! An entry names its results: `-> (logits: f32[B, S, 512])`. Donations stand behind the results:
//! `donates (2 -> 0)`. Attributes print by their kind: numbers, `true`, words, `[0, 2]`, dims
//! `[B, S]`, types, `@f`.
//!
//! # Effects, order and numbers
//! Ops of a body run in order; only state ops and calls have effects. Arithmetic is f32 unless an
//! op says otherwise, rounded once to the result's element type. Sums have a fixed order of their
//! own for each op, whatever runs them in parallel.

pub mod attr;
pub mod builder;
pub mod cost;
pub mod decompose;
pub mod dim;
pub mod formats;
pub mod interp;
pub mod module;
pub mod op;
pub mod pages;
pub mod rules;
pub mod text;
pub mod ty;
pub mod verify;
