//! The op table: one row an op. A row holds facts (name, operands, attributes, type rule, traits,
//! cost); whoever needs to know something about an op reads its row. Rules with a body are one
//! exhaustive `match` in a file of their own: interpretation in `interp/`, decomposition in
//! `decompose.rs`, derivatives in `passes/src/autodiff`.
//!
//! Unless a doc says otherwise an op computes in f32 and rounds once to its result's element type.

use crate::attr::AttrKind::{self, *};
use crate::rules::{self, Rule};

/// How many operands an op takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arity {
    Exactly(usize),
    AtLeast(usize),
}

/// What algebra and passes may assume of an op. `PURE` is implied by every other trait but those
/// that `is_pure` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trait {
    /// No effect but its results; may be removed, repeated and moved.
    Pure,
    /// Each output element depends on the elements of the operands at the same place.
    Pointwise,
    /// Operands may be swapped.
    Commutative,
    /// Only moves elements: no arithmetic.
    Movement,
    /// Sums or folds dims away.
    Reduction,
    /// Sums products of two operands over a dim they share.
    Contraction,
    /// Has a decomposition into primitives (`decompose.rs`), which is its definition.
    Composite,
    /// No derivative flows through it.
    Blocks,
    /// Consumes a state and returns its successor.
    State,
    /// Runs other functions of the module.
    Calls,
    /// Every rank along a mesh axis takes part, in one order of all of them.
    Collective,
    /// One end of a message between two ranks: stays, once, in the order of the others.
    Message,
}

/// Which count `cost.rs` makes for an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CostRule {
    /// Moves or renames; no arithmetic.
    Free,
    /// So many operations for each element of the first result.
    PerElement(u32),
    /// So many operations for each element of the first operand.
    PerInput(u32),
    Matmul,
    GroupedMatmul,
    Attention,
    AttentionGrad,
    /// The callee's, times the count.
    Callee,
    /// Bytes over the links, and a sum for what is reduced.
    Collective,
    /// Bytes over a link, counted where they are sent.
    Message,
}

/// An attribute's place in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttrSpec {
    pub name: &'static str,
    pub kind: AttrKind,
    pub optional: bool,
}

/// A row.
pub struct OpDef {
    pub op: Op,
    pub name: &'static str,
    /// Their names; `".."` last where any number may follow.
    pub operands: &'static [&'static str],
    pub attrs: &'static [AttrSpec],
    pub rule: Rule,
    pub traits: &'static [Trait],
    pub cost: CostRule,
}

impl OpDef {
    pub fn has(&self, t: Trait) -> bool {
        self.traits.contains(&t)
    }

    pub fn arity(&self) -> Arity {
        match self.operands {
            [named @ .., ".."] => Arity::AtLeast(named.len()),
            all => Arity::Exactly(all.len()),
        }
    }

    pub fn attr(&self, name: &str) -> Option<&AttrSpec> {
        self.attrs.iter().chain(SCHEDULED).find(|a| a.name == name)
    }
}

impl Op {
    pub fn def(self) -> &'static OpDef {
        &OPS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.def().name
    }

    pub fn from_name(name: &str) -> Option<Op> {
        OPS.iter().find(|d| d.name == name).map(|d| d.op)
    }

    pub fn has(self, t: Trait) -> bool {
        self.def().has(t)
    }

    /// The two halves of a collective begin with this op.
    pub fn start(self) -> Option<Op> {
        STARTS.iter().find(|(whole, _)| *whole == self).map(|(_, start)| *start)
    }

    /// The collective that an op begins, where it is the first half of one.
    pub fn started(self) -> Option<Op> {
        STARTS.iter().find(|(_, start)| *start == self).map(|(whole, _)| *whole)
    }

    /// No effect but its results.
    pub fn is_pure(self) -> bool {
        !self.has(Trait::State) && !self.has(Trait::Calls) && !self.has(Trait::Message)
    }
}

/// Collectives, and the ops that begin them.
const STARTS: &[(Op, Op)] = &[
    (Op::AllReduce, Op::AllReduceStart),
    (Op::ReduceScatter, Op::ReduceScatterStart),
    (Op::AllGather, Op::AllGatherStart),
    (Op::Exchange, Op::ExchangeStart),
];

/// What any op may be told of when it runs: on which of a device's two streams, that of compute or
/// that of communication. Said by `overlap`, in whose order both run.
const SCHEDULED: &[AttrSpec] =
    &[AttrSpec { name: "stream", kind: Word(&["compute", "comm"]), optional: true }];

/// Required attributes stand before the `;`, optional ones after it (absent means false, zero or
/// "not there"). A last operand `".."` stands for any number more.
macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident $name:literal ($($operand:literal)*)
       {$($attr:ident : $kind:expr),* $(; $($opt:ident : $okind:expr),*)?}
       $rule:ident [$($tr:ident)*] $cost:expr;)*) => {
        /// Every op of the IR; the docs say formula, shape rule and rounding.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Op { $($(#[$doc])* $variant),* }

        /// The table.
        pub static OPS: &[OpDef] = &[$(OpDef {
            op: Op::$variant,
            name: $name,
            operands: &[$($operand),*],
            attrs: &[
                $(AttrSpec { name: stringify!($attr), kind: $kind, optional: false },)*
                $($(AttrSpec { name: stringify!($opt), kind: $okind, optional: true },)*)?
            ],
            rule: rules::$rule,
            traits: &[$(Trait::$tr),*],
            cost: $cost,
        }),*];
    };
}

const GROUP_SCORES: AttrKind = Word(&["max", "top2"]);
/// How the products of codes are summed; absent: in f32.
const SUMS: AttrKind = Word(&["hopper14"]);
/// Which product of a linear map; absent: the forward one.
const ROLES: AttrKind = Word(&["input_grad", "weight_grad"]);

#[rustfmt::skip]
ops! {
  // --- sources -----------------------------------------------------------------------------------
  /// `value` everywhere in `type`.
  Constant "constant" () {value: Float, type: Type} constant [Pure Blocks] CostRule::Free;
  /// The index along `dim`, in `type`.
  Iota "iota" () {dim: Int, type: Type} iota [Pure Blocks] CostRule::Free;
  /// The size of a dim as an f32 scalar.
  Extent "extent" () {of: Dim} extent [Pure Blocks] CostRule::Free;

  // --- pointwise ---------------------------------------------------------------------------------
  /// `-x`.
  Neg "neg" ("x") {} same [Pure Pointwise] CostRule::PerElement(1);
  /// `|x|`.
  Abs "abs" ("x") {} same [Pure Pointwise] CostRule::PerElement(1);
  /// -1, 0 or 1; no derivative.
  Sign "sign" ("x") {} same [Pure Pointwise Blocks] CostRule::PerElement(1);
  /// The largest whole number not above `x`; no derivative.
  Floor "floor" ("x") {} same [Pure Pointwise Blocks] CostRule::PerElement(1);
  /// `e^x`.
  Exp "exp" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// Natural logarithm.
  Log "log" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// `x^(1/2)`.
  Sqrt "sqrt" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// `x^(-1/2)`.
  Rsqrt "rsqrt" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// `1 / (1 + e^-x)`.
  Sigmoid "sigmoid" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// Hyperbolic tangent.
  Tanh "tanh" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// Sine of radians.
  Sin "sin" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// Cosine of radians.
  Cos "cos" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// The error function `2/√π ∫₀ˣ e^(-t²) dt`.
  Erf "erf" ("x") {} float [Pure Pointwise] CostRule::PerElement(1);
  /// `x + y`. Shapes and dtypes of a pointwise op's operands agree: use `broadcast` first.
  Add "add" ("x" "y") {} same [Pure Pointwise Commutative] CostRule::PerElement(1);
  /// `x - y`.
  Sub "sub" ("x" "y") {} same [Pure Pointwise] CostRule::PerElement(1);
  /// `x y`.
  Mul "mul" ("x" "y") {} same [Pure Pointwise Commutative] CostRule::PerElement(1);
  /// `x / y`; integers truncate toward zero.
  Div "div" ("x" "y") {} same [Pure Pointwise] CostRule::PerElement(1);
  /// The larger; at a tie the derivative goes to `x`.
  Max "max" ("x" "y") {} same [Pure Pointwise Commutative] CostRule::PerElement(1);
  /// The smaller; at a tie the derivative goes to `x`.
  Min "min" ("x" "y") {} same [Pure Pointwise Commutative] CostRule::PerElement(1);
  /// `x = y`, as bool.
  Eq "eq" ("x" "y") {} compare [Pure Pointwise Commutative Blocks] CostRule::PerElement(1);
  /// `x < y`, as bool.
  Lt "lt" ("x" "y") {} compare [Pure Pointwise Blocks] CostRule::PerElement(1);
  /// `x <= y`, as bool.
  Le "le" ("x" "y") {} compare [Pure Pointwise Blocks] CostRule::PerElement(1);
  /// Logical and of bools.
  And "and" ("x" "y") {} logic [Pure Pointwise Commutative Blocks] CostRule::PerElement(1);
  /// Logical or of bools.
  Or "or" ("x" "y") {} logic [Pure Pointwise Commutative Blocks] CostRule::PerElement(1);
  /// Logical not of a bool.
  Not "not" ("x") {} logic [Pure Pointwise Blocks] CostRule::PerElement(1);
  /// `a` where `c`, else `b`.
  Select "select" ("c" "a" "b") {} select [Pure Pointwise] CostRule::PerElement(1);
  /// To another element type: round to nearest even; float to integer truncates. The formats of 8
  /// and 12 bits saturate, and ue8m0 rounds up (`formats.rs`).
  Convert "convert" ("x") {dtype: DType} convert [Pure Pointwise] CostRule::PerElement(1);
  /// Codes of `dtype` and a scale for each `group` of rows and columns of the two last dims;
  /// partial last groups have one too. With `amax` the largest finite |x| of a group, at least
  /// `floor`, and `max` the format's largest value, the scale is `amax / max` in f32, or the power
  /// of two that is not below it if `scale = ue8m0`; 1 where amax is 0. A code is x / scale rounded
  /// to nearest even, saturating: infinities become `max`, NaN stays.
  Quantize "quantize" ("x") {dtype: DType, group: Ints, scale: DType; floor: Float} quantize
    [Pure Blocks] CostRule::PerElement(4);
  /// What `quantize` makes as two values, codes and scales. Made by `split_quantized`.
  Encode "encode" ("x") {dtype: DType, group: Ints, scale: DType; floor: Float} encode
    [Pure Blocks] CostRule::PerElement(4);
  /// What `encode` makes of the value that codes and scales stand for, `code scale` rounded to
  /// `through`: other groups of the same value, which itself is nowhere in memory. The operand's
  /// groups are `x_group`. Made by `split_quantized`.
  Recode "recode" ("codes" "scales")
    {dtype: DType, group: Ints, scale: DType, x_group: Ints, through: DType; floor: Float} recode
    [Pure Blocks] CostRule::PerElement(5);
  /// `code scale`, in `dtype`.
  Dequantize "dequantize" ("x") {dtype: DType} dequantize [Pure Blocks] CostRule::PerElement(1);
  /// `x`, with no derivative.
  StopGradient "stop_gradient" ("x") {} same [Pure Pointwise Blocks] CostRule::Free;

  // --- movement ----------------------------------------------------------------------------------
  /// The same elements in row-major order under other dims of the same product.
  Reshape "reshape" ("x") {shape: Dims} reshape [Pure Movement] CostRule::Free;
  /// Dim `i` of the result is dim `perm[i]` of `x`.
  Transpose "transpose" ("x") {perm: Ints} transpose [Pure Movement] CostRule::Free;
  /// Dim `i` of `x` becomes dim `dims[i]` of `shape` (ascending; equal size, or 1 and stretched);
  /// the others repeat.
  Broadcast "broadcast" ("x") {shape: Dims, dims: Ints} broadcast [Pure Movement] CostRule::Free;
  /// `len` elements of `dim` from `start`; `dim` has a fixed size.
  Slice "slice" ("x") {dim: Int, start: Int, len: Int} slice [Pure Movement] CostRule::Free;
  /// Zeros before and after along `dim`, which has a fixed size.
  Pad "pad" ("x") {dim: Int, low: Int, high: Int} pad [Pure Movement] CostRule::Free;
  /// One after the other along `dim`.
  Concat "concat" ("x" "..") {dim: Int} concat [Pure Movement] CostRule::Free;
  /// `y[i] = x[i + by]` along `dim`, `fill` where that lies outside.
  Shift "shift" ("x") {dim: Int, by: Int, fill: Float} shift [Pure Movement] CostRule::Free;

  // --- reductions --------------------------------------------------------------------------------
  /// Sum over `dims`, which disappear.
  ReduceSum "reduce_sum" ("x") {dims: Ints} reduce [Pure Reduction] CostRule::PerInput(1);
  /// Maximum over `dims`, which disappear; no derivative.
  ReduceMax "reduce_max" ("x") {dims: Ints} reduce [Pure Reduction Blocks] CostRule::PerInput(1);
  /// The sum of `x` over every micro-batch and data-parallel rank of the optimizer step; `x` itself
  /// where there is one. `x` may depend on data only, not on weights. Illegal after the training
  /// step is built.
  BatchSum "batch_sum" ("x") {} same [Pure Blocks] CostRule::Free;

  // --- contractions ------------------------------------------------------------------------------
  /// `z[.., m, n] = Σ_k x[.., m, k] y[.., k, n]`, summed in f32. `tx`, `ty` swap the two last dims
  /// of an operand first. `y` has the batch dims of `x`, or none and serves them all. The sum is
  /// rounded to `dtype`; without it to the operands' type.
  ///
  /// Both operands may be quantized, and `dtype` is then required. Products of codes are summed in
  /// blocks of k: of `promote` terms, without it of the smallest group along k. A block's sum is
  /// multiplied by the scales of both groups and added in f32. With `accumulate = hopper14` a block
  /// is summed as a Hopper tensor core does (`interp/scaled.rs`); without `promote` that is all of
  /// k, and scales enter the products. After `split_quantized` codes and scales are values of their
  /// own, codes of e5m6 widened to bf16: the scales of x and of y stand last, and `x_group`,
  /// `y_group` say what has one. `site` names the product in the model and `role` which of the
  /// three products of a linear map it is: what a `precision` block's rules speak of.
  Matmul "matmul" ("x" "y" "..")
    {; tx: Bool, ty: Bool, dtype: DType, promote: Int, accumulate: SUMS, x_group: Ints,
     y_group: Ints, site: Name, role: ROLES} matmul [Pure Contraction] CostRule::Matmul;
  /// Row `r` of segment `e`: `z[r, n] = Σ_k x[r, k] w[e, k, n]`; `ty` swaps the two last dims of
  /// `w`. `offsets`: i32[e + 1], the first row of each segment and the end; what rows behind it
  /// become is not said. `dtype` as in `matmul`.
  GroupedMatmul "grouped_matmul" ("x" "w" "offsets" "..")
    {; ty: Bool, dtype: DType, promote: Int, accumulate: SUMS, x_group: Ints, y_group: Ints,
     site: Name, role: ROLES} grouped_matmul [Pure Contraction] CostRule::GroupedMatmul;
  /// Its weight derivative: `z[e, m, n] = Σ_(r in segment e) x[r, m] y[r, n]`; zero for an empty
  /// segment. Rows behind the last segment are left out. `dtype` as in `matmul`.
  GroupedOuter "grouped_outer" ("x" "y" "offsets" "..")
    {; dtype: DType, promote: Int, accumulate: SUMS, x_group: Ints, y_group: Ints, site: Name,
     role: ROLES} grouped_outer [Pure Contraction] CostRule::GroupedMatmul;

  // --- indexing ----------------------------------------------------------------------------------
  /// `y[.., d] = table[ids[..], d]`; zeros for a negative id.
  Gather "gather" ("table" "ids") {} gather [Pure] CostRule::Free;
  /// The derivative of `gather`: `z[ids[..], d] += x[.., d]` into `rows` rows of zeros, in the
  /// order of `ids`; a negative id adds nothing.
  ScatterAdd "scatter_add" ("x" "ids") {rows: Dim} scatter_add [Pure] CostRule::PerInput(1);
  /// `y[.., k] = x[.., ids[.., k]]`.
  Take "take" ("x" "ids") {} take [Pure] CostRule::Free;
  /// The derivative of `take`: `z[.., ids[.., k]] += x[.., k]` into a last dim of `size` zeros.
  Put "put" ("x" "ids") {size: Int} put [Pure] CostRule::PerInput(1);
  /// `y[.., j] = 1` where `ids[..] = j`, else 0, as f32.
  OneHot "one_hot" ("ids") {size: Int} one_hot [Pure Blocks] CostRule::Free;
  /// Indices of the `k` largest of the last dim, largest first, ties to the lowest index; NaN is
  /// -inf.
  Topk "topk" ("x") {k: Int} topk [Pure Blocks] CostRule::PerInput(4);
  /// `topk` within the `kept` groups of highest score among `groups` contiguous groups of the last
  /// dim; a group's score is its largest element or the sum of its two largest. Elements of other
  /// groups count as -inf, as NaN does.
  GroupedTopk "grouped_topk" ("x") {k: Int, groups: Int, kept: Int, group_score: GROUP_SCORES} topk
    [Pure Composite Blocks] CostRule::PerInput(6);

  // --- tokens to experts and back ----------------------------------------------------------------
  /// Sort the `active` choices of every token by expert, then token. `offsets`: i32[experts + 1];
  /// `order`: i32[R], for each row its place `token * active + slot` in `ids`.
  Route "route" ("ids") {experts: Int, rows: Dim} route [Pure Blocks] CostRule::PerInput(4);
  /// `rows[r] = x[order[r] / active]`, times `weights[order[r]]` if given. Of codes whose rows have
  /// scales of their own, codes and scales.
  Dispatch "dispatch" ("x" "order" "..") {active: Int} dispatch [Pure] CostRule::Free;
  /// `y[t] = Σ_slot weights[t, slot] rows[row of (t, slot)]`, slots in order; weight 1 if not
  /// given. `tokens`: the leading dims of the result.
  Combine "combine" ("rows" "order" "..") {tokens: Dims, active: Int} combine [Pure] CostRule::PerInput(2);
  /// The derivative of `combine` for its weights, in f32:
  /// `z[t, slot] = Σ_d dy[t, d] rows[row of (t, slot), d]`.
  CombineDot "combine_dot" ("rows" "order" "dy") {active: Int} combine_dot [Pure] CostRule::PerInput(2);

  // --- composites --------------------------------------------------------------------------------
  /// `y = g x r`, `r = (mean(x²) + eps)^(-1/2)` over the last dim; returns `y` and `r`.
  RmsNorm "rms_norm" ("x" "g") {eps: Float} rms_norm [Pure Composite] CostRule::PerElement(4);
  /// Its derivative for `x`: `r (g dy - x r² mean(g dy x))`.
  RmsNormGrad "rms_norm_grad" ("x" "g" "r" "dy") {} rms_norm_grad [Pure Composite] CostRule::PerElement(8);
  /// `e^(x - max) / Σ e^(x - max)` over the last dim.
  Softmax "softmax" ("x") {} float [Pure Composite] CostRule::PerElement(5);
  /// Turn pairs of the last dim of `x[B, S, H, D]` by `positions[b, s] freq[i]` radians; pair i is
  /// (2i, 2i + 1) if `interleaved`, else (i, i + D/2). `inverse` turns back, which is the
  /// derivative. The angle is rounded to f32.
  Rotary "rotary" ("x" "positions" "freq") {; interleaved: Bool, inverse: Bool} rotary [Pure Composite]
    CostRule::PerElement(3);
  /// Operands q₁..qₙ [B, S, H, Dᵢ], k₁..kₙ [B, T, Hᵢ, Dᵢ], v [B, T, Hᵥ, Dᵥ] (n = `parts`; Hᵢ and Hᵥ
  /// divide H, query head h reads head h Hᵢ / H), then start i32[B] if `offset` and segments i32[B,
  /// S], i32[B, T] if `segments`. `p = softmax(scale Σᵢ qᵢ·kᵢ)` over the visible t:
  /// `t <= s + start` if `causal`, and the same segment. Returns `o[B, S, H, Dᵥ] = Σ_t p v` and the
  /// log of the softmax's denominator, f32[B, H, S]. A row that sees nothing gives 0 and -inf.
  ///
  /// With `pages` keys and values are pools of pages of N positions, [P, N, Hᵢ, Dᵢ], and the last
  /// operand is i32[B, n]: key t < n N of b is row t mod N of page `pages[b, t / N]`. A key that is
  /// seen has a page of the pool. Made by `page_caches`.
  ///
  /// As a matrix unit takes it, `e^(x - m)`, m the row's largest x, is rounded to the operands'
  /// type before it weighs v; the denominator sums it unrounded, and divides last. A kernel that
  /// sees keys in blocks takes for m the largest so far, and one without matrix units rounds
  /// nothing: in bf16 kernels are as far from this as that moves a rounding.
  Attention "attention" ("q" "..")
    {parts: Int, scale: Float; causal: Bool, offset: Bool, segments: Bool, pages: Bool} attention
    [Pure Composite] CostRule::Attention;
  /// Operands of `attention`, with o, lse, do after v. Returns the derivatives of q₁..qₙ, k₁..kₙ
  /// and v. `p` and the derivatives of scores, of p unrounded, are rounded to the operands' type
  /// before they are multiplied.
  AttentionGrad "attention_grad" ("q" "..") {parts: Int, scale: Float; causal: Bool, offset: Bool, segments: Bool}
    attention_grad [Pure Composite] CostRule::AttentionGrad;
  /// `loss[..] = log Σ e^logits - logits[target]`, 0 where the target is negative; returns the loss
  /// and the log of the sum, both f32.
  CrossEntropy "cross_entropy" ("logits" "targets") {} cross_entropy [Pure Composite] CostRule::PerInput(4);
  /// Its derivative: `dloss (e^(logits - lse) - one_hot(target))`, 0 where the target is negative.
  CrossEntropyGrad "cross_entropy_grad" ("logits" "targets" "lse" "dloss") {} cross_entropy_grad [Pure Composite]
    CostRule::PerInput(4);

  // --- state -------------------------------------------------------------------------------------
  /// The value a state holds now. Every use of it stands before the state is consumed.
  Read "read" ("state") {} read [Pure] CostRule::Free;
  /// The state, holding `x`.
  Assign "assign" ("state" "x") {} assign [State] CostRule::Free;
  /// `x[b, s]` written at position `start[b] + s` of `cache[B, T, ..]`; returns the whole cache's
  /// value and the cache. With a fourth operand `pages`, i32[B, n], the cache is a pool of pages of
  /// N positions, [P, N, ..]: position t < n N of b is row t mod N of page `pages[b, t / N]`, and
  /// nothing is written where that is below 0. No two b write to one page.
  CacheAppend "cache_append" ("cache" "x" "start" "..") {} cache_append [State] CostRule::Free;
  /// AdamW (arXiv 1711.05101) at step `t = 1, 2, ..`: `m = β₁ m + (1 - β₁) g`,
  /// `v = β₂ v + (1 - β₂) g²`, `w = w - lr (m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps) + decay w)`;
  /// returns the states w, m, v. The step takes the new m and v before they are rounded; `1 - βᵗ`
  /// is exact to f32's rounding (see its decomposition).
  AdamW "adamw" ("w" "m" "v" "g" "lr" "t") {beta1: Float, beta2: Float, eps: Float, decay: Float} adamw
    [State Composite] CostRule::PerElement(15);

  // --- between ranks -----------------------------------------------------------------------------
  // Every rank runs the same program; those that differ in nothing but their place along `axis` do
  // these together. Made by `shard`.
  /// The sum of `x` over the ranks along `axis`, for each of them. From zero, in f32, in a binary
  /// tree over the place: the first 2^k of n places, 2^k < n <= 2^(k+1), and the others are one
  /// summand each. Its derivative is that of `spread`: there is one objective, and each rank knows
  /// what it is by the sum.
  AllReduce "all_reduce" ("x") {axis: Axis} all_reduce [Pure Collective] CostRule::Collective;
  /// `x`, which all ranks along `axis` have alike, for each of them to make something else of: the
  /// derivative by `x` is the sum of theirs, an `all_reduce`. Made by `tensor`, gone after
  /// `autodiff`.
  Spread "spread" ("x") {axis: Axis} spread [Pure Movement Collective] CostRule::Free;
  /// The rank's part of `x`, which all ranks along `axis` have alike: `dim` is cut into as many
  /// equal parts as there are places, in their order. Its derivative is an `all_gather`, and the
  /// other way round, where all ranks make one thing of what is gathered (`spread` says otherwise).
  /// Made by `tensor` and `sequence`.
  Part "part" ("x") {axis: Axis, dim: Int} part [Pure Collective] CostRule::Free;
  /// The part of `all_reduce` that belongs to the rank: `dim` is cut into as many equal parts as
  /// there are places, in their order.
  ReduceScatter "reduce_scatter" ("x") {axis: Axis, dim: Int} reduce_scatter
    [Pure Collective Blocks] CostRule::Collective;
  /// `x` of every rank along `axis`, one after the other along `dim` in the order of places.
  AllGather "all_gather" ("x") {axis: Axis, dim: Int} all_gather [Pure Collective]
    CostRule::Collective;
  /// Where the rows begin that `exchange` brings. Of `E` experts each of `n` places along `axis`
  /// has `E / n`, in order; `offsets`, i32[E + 1], are those of the rank's own rows by expert. The
  /// result, i32[E + 1], is of the rows for its experts: by expert, then by the place they come
  /// from. Made by `experts`.
  ExchangeOffsets "exchange_offsets" ("offsets") {axis: Axis} exchange_offsets
    [Pure Collective Blocks] CostRule::Collective;
  /// `rows[R, d]`, cut by `sent`, to the places along `axis` that have their experts: what comes,
  /// `[n R, d]`, is cut by `got` (`exchange_offsets`), with zeros behind. `back`: from there, `n R`
  /// rows cut by `got`, to where they came from, with zeros for all others. A quantized row takes
  /// its scales along. `room`: so many rows are in the result, whatever the operand has; those that
  /// come are no more. Made by `experts`.
  Exchange "exchange" ("rows" "sent" "got") {axis: Axis; back: Bool, room: Dim} exchange
    [Pure Collective Blocks] CostRule::Collective;
  /// `all_reduce` in two halves. It hands over what needs nothing of other ranks and does not wait;
  /// the result is in flight, and one `done` of the same function takes it. Until then neither `x`
  /// nor the place of the result changes. Several may be in flight; ranks begin them in one order,
  /// and end them in one. `sms`: the multiprocessors that carry it. Made by `overlap`, as the
  /// others.
  AllReduceStart "all_reduce_start" ("x") {axis: Axis; sms: Int} started
    [Pure Collective Blocks] CostRule::Collective;
  /// `reduce_scatter` that does not wait.
  ReduceScatterStart "reduce_scatter_start" ("x") {axis: Axis, dim: Int; sms: Int} started
    [Pure Collective Blocks] CostRule::Collective;
  /// `all_gather` that does not wait.
  AllGatherStart "all_gather_start" ("x") {axis: Axis, dim: Int; sms: Int} started
    [Pure Collective Blocks] CostRule::Collective;
  /// `exchange` that does not wait.
  ExchangeStart "exchange_start" ("rows" "sent" "got")
    {axis: Axis; back: Bool, room: Dim, sms: Int} started
    [Pure Collective Blocks] CostRule::Collective;
  /// Waits for what is in flight: the result of the collective that began it.
  Done "done" ("flight") {} done [Pure Collective Blocks] CostRule::Free;
  /// Hands `x` to the rank at place `to` along `axis`, which receives what it is sent by a rank in
  /// the order in which that sends it. Does not wait. Made by `schedule_pipeline`.
  Send "send" ("x") {axis: Axis, to: Int} send [Message Blocks] CostRule::Message;
  /// The next value from the rank at place `from` along `axis`, which is of `type`.
  Recv "recv" () {axis: Axis, from: Int, type: Type} recv [Message Blocks] CostRule::Message;

  // --- control -----------------------------------------------------------------------------------
  /// The results of `func` on the operands. With `noinline` it stays a call, so that
  /// what runs many times stands once.
  Call "call" ("..") {func: Func; noinline: Bool} call [Calls] CostRule::Callee;
  /// `count` runs of `func`. Operands: `carry` values handed from run to run, then `xs` stacks
  /// whose slice i run i reads, then values all runs see. `func` takes them in that order and
  /// returns the carried values, then one slice of each stack of results. Returns the last carried
  /// values and the stacks. `reverse` runs the last slice first. The last `back_xs` stacks that are
  /// read and the last `back_ys` that are made run the other way: of two loops made one (`overlap`),
  /// one may begin where the other ends. `skip`, a number for each stack that is read: it has that
  /// many slices before those of the turns, and perhaps more behind; a stack of states is returned
  /// with all of them. `early`: no run begins for which the first carried value, i32[1], would not
  /// be above 0, and there are no stacks.
  Repeat "repeat" ("..")
    {func: Func, count: Int, carry: Int, xs: Int; reverse: Bool, back_xs: Int, back_ys: Int,
     skip: Ints, early: Bool}
    repeat [Calls] CostRule::Callee;
  /// A region run as one kernel: `func` holds pointwise, movement and row ops only, or attention,
  /// movement and codes of its rows. Created by `fuse`.
  Fused "fused" ("..") {func: Func} call [Calls] CostRule::Callee;
}
