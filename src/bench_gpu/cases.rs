//! What is checked and timed: functions of the IR, at small sizes that fill no tile, and at those
//! of DeepSeek-V3 (4,096 tokens; up to 128 requests of 4,096 tokens each to decode).

/// A function at some sizes.
pub struct Problem {
    /// For people.
    pub sizes: String,
    /// Of a module; its entry is `@f`.
    pub text: String,
    /// Values of integer parameters, by name; others are drawn.
    pub ints: Vec<(&'static str, Vec<i64>)>,
    /// Parameters of which no element is below zero.
    pub positive: Vec<&'static str>,
}

pub struct Case {
    pub name: &'static str,
    pub small: Problem,
    pub large: Vec<Problem>,
    /// `‖found - expected‖ / ‖expected‖` of each result at most.
    pub tolerance: f64,
}

impl Case {
    /// What is timed: all large problems, or the small one.
    pub fn problems(&self, large: bool) -> &[Problem] {
        if large { &self.large } else { std::slice::from_ref(&self.small) }
    }
}

/// Results of bf16 round by half a unit in the last place; what goes into them may be rounded once
/// more.
const BF16: f64 = 1.0 / 128.0;
/// Chains of f32 in another order.
const F32: f64 = 4e-6;

/// What a multiprocessor's tensor cores do best: a product so large that all else is hidden.
const SATURATING: [usize; 3] = [8192, 8192, 8192];

pub fn all() -> Vec<Case> {
    vec![
        copy(),
        Case {
            name: "bf16 product",
            small: product([200, 136, 96]),
            large: products(product),
            tolerance: BF16,
        },
        Case {
            name: "e4m3 product",
            small: codes([130, 136, 200]),
            large: products(codes),
            tolerance: BF16,
        },
        linear_map(),
        experts(),
        experts_codes(),
        attention(),
        derivative(),
        latent(),
        norm(),
        swiglu(),
        gated(),
        rotary(),
        dispatch(),
        loss(),
        adamw(),
    ]
}

/// Products that say what rate the tensor cores reach in this run: of bf16 and of codes, with a
/// part of the name of the kernel that does them.
pub fn rates() -> [(&'static str, Case); 2] {
    let of = |name: &'static str, make: fn([usize; 3]) -> Problem| Case {
        name,
        small: make([130, 136, 200]),
        large: vec![make(SATURATING)],
        tolerance: BF16,
    };
    [("bf16_", of("bf16 rate", product)), ("e4m3_", of("e4m3 rate", codes))]
}

/// Rows, columns and terms of the products of a layer.
fn products(of: fn([usize; 3]) -> Problem) -> Vec<Problem> {
    let shapes =
        [[2112, 7168], [24_576, 1536], [32_768, 512], [7168, 16_384], [4096, 7168], [7168, 2048]];
    let mut all: Vec<Problem> = shapes.into_iter().map(|[n, k]| of([4096, n, k])).collect();
    all.push(of(SATURATING));
    all
}

fn problem(sizes: String, text: String) -> Problem {
    Problem { sizes, text, ints: vec![], positive: vec![] }
}

/// Reads and writes memory, and does nothing else.
pub fn copy() -> Case {
    Case { name: "copy", small: flush(1000), large: vec![flush(1 << 28)], tolerance: 0.0 }
}

/// The same of `n` elements of f32: whatever a cache held is gone.
pub fn flush(n: usize) -> Problem {
    let text = format!(
        "func @f(%x: f32[{n}]) -> (y: f32[{n}]) {{\n  %y = neg %x : f32[{n}]\n  return %y\n}}"
    );
    problem(format!("{n}"), text)
}

fn product([m, n, k]: [usize; 3]) -> Problem {
    let text = format!(
        "func @f(%x: bf16[{m}, {k}], %w: bf16[{n}, {k}]) -> (y: bf16[{m}, {n}]) {{
  %y = matmul %x, %w {{ty = true}} : bf16[{m}, {n}]
  return %y
}}"
    );
    problem(format!("{m}x{n}x{k}"), text)
}

/// The quantizers are rows of their own, beside the product's.
fn codes([m, n, k]: [usize; 3]) -> Problem {
    let text = format!(
        "func @f(%x: bf16[{m}, {k}], %w: bf16[{n}, {k}]) -> (y: bf16[{m}, {n}]) {{
  %xq = quantize %x {{dtype = e4m3, group = [1, 128], scale = f32}} : e4m3<1x128, f32>[{m}, {k}]
  %wq = quantize %w {{dtype = e4m3, group = [128, 128], scale = f32}} : e4m3<128x128, f32>[{n}, {k}]
  %y = matmul %xq, %wq {{ty = true, dtype = bf16, promote = 128}} : bf16[{m}, {n}]
  return %y
}}"
    );
    problem(format!("{m}x{n}x{k}"), text)
}

/// The two gradients of a linear map of codes, whose operands are copied along k first.
fn linear_map() -> Case {
    let of = |[m, n, k]: [usize; 3]| {
        let text = format!(
            "func @f(%x: bf16[{m}, {k}], %w: f32[{n}, {k}], %dy: bf16[{m}, {n}])
    -> (dx: bf16[{m}, {k}], dw: f32[{n}, {k}]) {{
  %wq = quantize %w {{dtype = e4m3, group = [128, 128], scale = f32}} : e4m3<128x128, f32>[{n}, {k}]
  %dyq = quantize %dy {{dtype = e4m3, group = [1, 128], scale = f32}} : e4m3<1x128, f32>[{m}, {n}]
  %xt = quantize %x {{dtype = e4m3, group = [128, 1], scale = f32}} : e4m3<128x1, f32>[{m}, {k}]
  %dyt = quantize %dy {{dtype = e4m3, group = [128, 1], scale = f32}} : e4m3<128x1, f32>[{m}, {n}]
  %dx = matmul %dyq, %wq {{dtype = bf16, promote = 128}} : bf16[{m}, {k}]
  %dw = matmul %dyt, %xt {{tx = true, dtype = f32, promote = 128}} : f32[{n}, {k}]
  return %dx, %dw
}}"
        );
        problem(format!("{m}x{n}x{k}"), text)
    };
    Case {
        name: "gradients of codes",
        small: of([130, 136, 200]),
        large: vec![of([4096, 4096, 7168]), of([4096, 7168, 2048])],
        tolerance: BF16,
    }
}

/// The products of experts on codes: rows by group, and a weight's gradient summed by group.
fn experts_codes() -> Case {
    let of = |groups: usize, rows: usize, [n, k]: [usize; 2]| {
        let m = groups * rows;
        let text = format!(
            "func @f(%x: bf16[{m}, {k}], %w: f32[{groups}, {n}, {k}], %dy: bf16[{m}, {n}],
        %o: i32[{}]) -> (y: bf16[{m}, {n}], dw: f32[{groups}, {n}, {k}]) {{
  %xq = quantize %x {{dtype = e4m3, group = [1, 128], scale = f32}} : e4m3<1x128, f32>[{m}, {k}]
  %wq = quantize %w {{dtype = e4m3, group = [128, 128], scale = f32}} : e4m3<128x128, f32>[{groups}, {n}, {k}]
  %xt = quantize %x {{dtype = e4m3, group = [128, 1], scale = f32}} : e4m3<128x1, f32>[{m}, {k}]
  %dyt = quantize %dy {{dtype = e4m3, group = [128, 1], scale = f32}} : e4m3<128x1, f32>[{m}, {n}]
  %y = grouped_matmul %xq, %wq, %o {{ty = true, dtype = bf16, promote = 128}} : bf16[{m}, {n}]
  %dw = grouped_outer %dyt, %xt, %o {{dtype = f32, promote = 128}} : f32[{groups}, {n}, {k}]
  return %y, %dw
}}",
            groups + 1
        );
        let offsets = (0..=groups).map(|e| (e * rows) as i64).collect();
        let sizes = format!("{groups} of {rows}x{n}x{k}");
        Problem { ints: vec![("o", offsets)], ..problem(sizes, text) }
    };
    Case {
        name: "codes by expert",
        small: of(3, 40, [72, 64]),
        large: vec![of(4, 8192, [4096, 7168]), of(4, 8192, [7168, 2048])],
        tolerance: BF16,
    }
}

/// Products of rows by group.
fn experts() -> Case {
    let of = |groups: usize, rows: usize, [n, k]: [usize; 2]| {
        let m = groups * rows;
        let text = format!(
            "func @f(%x: bf16[{m}, {k}], %w: bf16[{groups}, {n}, {k}], %o: i32[{}])
    -> (y: bf16[{m}, {n}]) {{
  %y = grouped_matmul %x, %w, %o {{ty = true}} : bf16[{m}, {n}]
  return %y
}}",
            groups + 1
        );
        let offsets = (0..=groups).map(|e| (e * rows) as i64).collect();
        let sizes = format!("{groups} of {rows}x{n}x{k}");
        Problem { ints: vec![("o", offsets)], ..problem(sizes, text) }
    };
    let large = vec![of(4, 8192, [4096, 7168]), of(4, 8192, [7168, 2048])];
    Case { name: "products by expert", small: of(3, 40, [72, 64]), large, tolerance: BF16 }
}

/// The types of latent attention's operands before absorption, q, k and v, and of its output.
fn heads([batch, rows, heads]: [usize; 3], [nope, rope, v]: [usize; 3]) -> [String; 6] {
    let of = |heads: usize, width: usize| format!("bf16[{batch}, {rows}, {heads}, {width}]");
    let lse = format!("f32[{batch}, {heads}, {rows}]");
    [of(heads, nope), of(heads, rope), of(heads, nope), of(1, rope), of(heads, v), lse]
}

fn attention() -> Case {
    let of = |sizes: [usize; 3], widths: [usize; 3]| {
        let [q, qr, k, kr, v, lse] = heads(sizes, widths);
        let text = format!(
            "func @f(%q: {q}, %qr: {qr}, %k: {k}, %kr: {kr}, %v: {v}) -> (o: {v}, lse: {lse}) {{
  %o, %lse = attention %q, %qr, %k, %kr, %v {{parts = 2, scale = 0.07, causal = true}} : {v}, {lse}
  return %o, %lse
}}"
        );
        problem(format!("{sizes:?}"), text)
    };
    let large = vec![of([1, 4096, 128], [128, 64, 128])];
    Case { name: "attention", small: of([1, 70, 2], [24, 8, 40]), large, tolerance: BF16 }
}

fn derivative() -> Case {
    let of = |sizes: [usize; 3], widths: [usize; 3]| {
        let [q, qr, k, kr, v, lse] = heads(sizes, widths);
        let how = "{parts = 2, scale = 0.07, causal = true}";
        let text = format!(
            "func @f(%q: {q}, %qr: {qr}, %k: {k}, %kr: {kr}, %v: {v}, %do: {v})
    -> (dq: {q}, dqr: {qr}, dk: {k}, dkr: {kr}, dv: {v}) {{
  %o, %lse = attention %q, %qr, %k, %kr, %v {how} : {v}, {lse}
  %dq, %dqr, %dk, %dkr, %dv = attention_grad %q, %qr, %k, %kr, %v, %o, %lse, %do {how}
    : {q}, {qr}, {k}, {kr}, {v}
  return %dq, %dqr, %dk, %dkr, %dv
}}"
        );
        problem(format!("{sizes:?}"), text)
    };
    let large = vec![of([1, 4096, 128], [128, 64, 128])];
    Case {
        name: "attention and its derivative",
        small: of([1, 70, 2], [24, 8, 40]),
        large,
        tolerance: BF16,
    }
}

/// A token of each request over its latents.
fn latent() -> Case {
    let of = |[batch, heads, keys]: [usize; 3], [latent, rope]: [usize; 2]| {
        let text = format!(
            "func @f(%q: bf16[{batch}, 1, {heads}, {latent}],
        %qr: bf16[{batch}, 1, {heads}, {rope}], %c: bf16[{batch}, {keys}, 1, {latent}], %kr: bf16[{batch}, {keys}, 1, {rope}],
        %start: i32[{batch}])
    -> (o: bf16[{batch}, 1, {heads}, {latent}], lse: f32[{batch}, {heads}, 1]) {{
  %o, %lse = attention %q, %qr, %c, %kr, %c, %start
    {{parts = 2, scale = 0.07, causal = true, offset = true}}
    : bf16[{batch}, 1, {heads}, {latent}], f32[{batch}, {heads}, 1]
  return %o, %lse
}}"
        );
        let sizes = format!("{batch} requests, {heads} heads, {keys} keys");
        Problem { ints: vec![("start", vec![keys as i64 - 1; batch])], ..problem(sizes, text) }
    };
    let large = vec![
        of([1, 128, 4096], [512, 64]),
        of([16, 128, 4096], [512, 64]),
        of([128, 128, 4096], [512, 64]),
    ];
    let small = of([2, 70, 300], [64, 8]);
    Case { name: "latent attention", small, large, tolerance: BF16 }
}

fn norm() -> Case {
    let of = |m: usize, n: usize| {
        let text = format!(
            "func @f(%x: bf16[{m}, {n}], %g: f32[{n}]) -> (y: bf16[{m}, {n}]) {{
  %xf = convert %x {{dtype = f32}} : f32[{m}, {n}]
  %yf, %r = rms_norm %xf, %g {{eps = 1e-6}} : f32[{m}, {n}], f32[{m}]
  %y = convert %yf {{dtype = bf16}} : bf16[{m}, {n}]
  return %y
}}"
        );
        problem(format!("{m}x{n}"), text)
    };
    Case { name: "norm", small: of(5, 136), large: vec![of(4096, 7168)], tolerance: BF16 }
}

fn swiglu() -> Case {
    let of = |m: usize, n: usize| {
        let ty = format!("f32[{m}, {n}]");
        let text = format!(
            "func @f(%gate: bf16[{m}, {n}], %up: bf16[{m}, {n}]) -> (y: bf16[{m}, {n}]) {{
  %g = convert %gate {{dtype = f32}} : {ty}
  %u = convert %up {{dtype = f32}} : {ty}
  %s = sigmoid %g : {ty}
  %gs = mul %g, %s : {ty}
  %yf = mul %gs, %u : {ty}
  %y = convert %yf {{dtype = bf16}} : bf16[{m}, {n}]
  return %y
}}"
        );
        problem(format!("{m}x{n}"), text)
    };
    Case { name: "swiglu", small: of(5, 136), large: vec![of(32_768, 2048)], tolerance: BF16 }
}

/// Gate and up with what a region makes of them: of bf16, and a whole feed-forward layer of codes.
fn gated() -> Case {
    let region = |shape: &str| {
        format!(
            "  %gf = convert %g {{dtype = f32}} : f32[{shape}]
  %uf = convert %u {{dtype = f32}} : f32[{shape}]
  %s = sigmoid %gf : f32[{shape}]
  %a = mul %gf, %s : f32[{shape}]
  %hf = mul %a, %uf : f32[{shape}]
  %h = convert %hf {{dtype = bf16}} : bf16[{shape}]\n"
        )
    };
    let plain = |[m, n, k]: [usize; 3]| {
        let text = format!(
            "func @f(%x: bf16[{m}, {k}], %wg: bf16[{n}, {k}], %wu: bf16[{n}, {k}])
    -> (h: bf16[{m}, {n}]) {{
  %g = matmul %x, %wg {{ty = true}} : bf16[{m}, {n}]
  %u = matmul %x, %wu {{ty = true}} : bf16[{m}, {n}]
{}  return %h
}}",
            region(&format!("{m}, {n}"))
        );
        problem(format!("{m}x{n}x{k}"), text)
    };
    let codes = |[m, n, k]: [usize; 3]| {
        let weight = |name: &str, [rows, cols]: [usize; 2]| {
            format!(
                "quantize %{name} {{dtype = e4m3, group = [128, 128], scale = f32}} : \
                 e4m3<128x128, f32>[{rows}, {cols}]"
            )
        };
        let row = |name: &str, cols: usize| {
            format!(
                "quantize %{name} {{dtype = e4m3, group = [1, 128], scale = f32}} : \
                 e4m3<1x128, f32>[{m}, {cols}]"
            )
        };
        let text = format!(
            "func @f(%x: bf16[{m}, {k}], %wg: bf16[{n}, {k}], %wu: bf16[{n}, {k}],
        %wd: bf16[{k}, {n}]) -> (y: bf16[{m}, {k}]) {{
  %xq = {}
  %gq = {}
  %uq = {}
  %dq = {}
  %g = matmul %xq, %gq {{ty = true, dtype = bf16, promote = 128}} : bf16[{m}, {n}]
  %u = matmul %xq, %uq {{ty = true, dtype = bf16, promote = 128}} : bf16[{m}, {n}]
{}  %hq = {}
  %y = matmul %hq, %dq {{ty = true, dtype = bf16, promote = 128}} : bf16[{m}, {k}]
  return %y
}}",
            row("x", k),
            weight("wg", [n, k]),
            weight("wu", [n, k]),
            weight("wd", [k, n]),
            region(&format!("{m}, {n}")),
            row("h", n)
        );
        problem(format!("codes, {m}x{n}x{k}"), text)
    };
    Case {
        name: "gate and up",
        small: plain([130, 96, 72]),
        large: vec![plain([4096, 2048, 7168]), codes([4096, 2048, 7168])],
        tolerance: BF16,
    }
}

/// Positions of queries, turned in pairs of neighbours.
fn rotary() -> Case {
    let of = |rows: usize, heads: usize, width: usize| {
        let ty = |dtype: &str| format!("{dtype}[1, {rows}, {heads}, {width}]");
        let (bf16, f32) = (ty("bf16"), ty("f32"));
        let text = format!(
            "func @f(%x: {bf16}, %p: i32[1, {rows}], %freq: f32[{}]) -> (y: {bf16}) {{
  %xf = convert %x {{dtype = f32}} : {f32}
  %yf = rotary %xf, %p, %freq {{interleaved = true}} : {f32}
  %y = convert %yf {{dtype = bf16}} : {bf16}
  return %y
}}",
            width / 2
        );
        let positions = (0..rows as i64).collect();
        let sizes = format!("{rows} rows, {heads} heads of {width}");
        Problem { ints: vec![("p", positions)], ..problem(sizes, text) }
    };
    Case { name: "rotary", small: of(9, 2, 8), large: vec![of(4096, 128, 64)], tolerance: BF16 }
}

/// Rows of tokens to where their experts' are, and back, weighted.
fn dispatch() -> Case {
    let of = |tokens: usize, width: usize, [experts, active]: [usize; 2]| {
        let rows = tokens * active;
        let text = format!(
            "func @f(%x: bf16[{tokens}, {width}], %ids: i32[{tokens}, {active}],
        %p: f32[{tokens}, {active}]) -> (rows: bf16[{rows}, {width}], y: bf16[{tokens}, {width}]) {{
  %offsets, %order = route %ids {{experts = {experts}, rows = {rows}}} : i32[{}], i32[{rows}]
  %rows = dispatch %x, %order {{active = {active}}} : bf16[{rows}, {width}]
  %y = combine %rows, %order, %p {{tokens = [{tokens}], active = {active}}} : bf16[{tokens}, {width}]
  return %rows, %y
}}",
            experts + 1
        );
        // A token's experts differ; which they are has no pattern.
        let id = |i: usize| (i / active * 7919 + i % active * (experts / active)) % experts;
        let ids = (0..rows).map(|i| id(i) as i64).collect();
        let sizes = format!("{tokens}x{width} to {active} of {experts}");
        Problem { ints: vec![("ids", ids)], ..problem(sizes, text) }
    };
    Case {
        name: "dispatch and combine",
        small: of(21, 72, [8, 2]),
        large: vec![of(4096, 7168, [64, 8])],
        tolerance: BF16,
    }
}

/// A step of the optimizer, with moments of bf16.
fn adamw() -> Case {
    let of = |n: usize| {
        let text = format!(
            "func @f(%w: state f32[{n}], %m: state bf16[{n}], %v: state bf16[{n}], %g: f32[{n}],
        %lr: f32[], %t: f32[]) -> (w2: state f32[{n}], m2: state bf16[{n}], v2: state bf16[{n}])
    donates (0 -> 0, 1 -> 1, 2 -> 2) {{
  %w2, %m2, %v2 = adamw %w, %m, %v, %g, %lr, %t {{beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1}}
    : state f32[{n}], state bf16[{n}], state bf16[{n}]
  return %w2, %m2, %v2
}}"
        );
        Problem { positive: vec!["v", "lr", "t"], ..problem(format!("{n}"), text) }
    };
    Case { name: "adamw", small: of(1000), large: vec![of(1 << 27)], tolerance: BF16 }
}

fn loss() -> Case {
    let of = |m: usize, n: usize| {
        let text = format!(
            "func @f(%logits: f32[{m}, {n}], %targets: i32[{m}]) -> (loss: f32[{m}]) {{
  %loss, %lse = cross_entropy %logits, %targets : f32[{m}], f32[{m}]
  return %loss
}}"
        );
        let targets = (0..m).map(|i| (i * 7919 % n) as i64).collect();
        Problem { ints: vec![("targets", targets)], ..problem(format!("{m}x{n}"), text) }
    };
    Case {
        name: "cross entropy",
        small: of(5, 300),
        large: vec![of(4096, 129_280)],
        tolerance: F32,
    }
}
