//! Codes, scales and products of them, bit for bit against a reference written apart: formats are
//! tables of values searched for the nearest, and sums of products are integers.

use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::text;
use weft_ir::ty::DType;

/// Every value from 0 up that a format holds, in the order of its codes.
fn table(dtype: DType) -> Vec<f64> {
    let (mantissa_bits, bias, n) = match dtype {
        DType::E4m3 => (3, 7, 0x7f),
        DType::E5m2 => (2, 15, 0x7c),
        _ => (6, 15, 0x7c0),
    };
    let per_exponent = 1usize << mantissa_bits;
    // The step is that of the least normals below them, then doubles with each exponent.
    let mut step = 2f64.powi(1 - bias - mantissa_bits);
    let mut values = vec![0.0];
    while values.len() < n {
        if values.len() > 2 * per_exponent && values.len() % per_exponent == 1 {
            step *= 2.0;
        }
        values.push(values[values.len() - 1] + step);
    }
    values
}

/// The nearest of `table`, ties to the even code; what is beyond it is its end.
fn nearest(table: &[f64], x: f32) -> f64 {
    let size = f64::from(x.abs());
    let above = table.partition_point(|v| *v < size);
    let code = match above {
        0 => 0,
        _ if above == table.len() => above - 1,
        _ => {
            let (low, high) = (size - table[above - 1], table[above] - size);
            let low_wins = low < high || low == high && (above - 1) % 2 == 0;
            if low_wins { above - 1 } else { above }
        }
    };
    if x.is_nan() { f64::NAN } else { table[code].copysign(f64::from(x)) }
}

/// `2^ceil(log2 x)` within a scale's range, by doubling.
fn power_not_below(x: f32) -> f32 {
    let mut power = 2f64.powi(-127);
    while power < f64::from(x) && power < 2f64.powi(127) {
        power *= 2.0;
    }
    power as f32
}

struct Quantizer {
    dtype: DType,
    group: [usize; 2],
    pow2: bool,
    floor: f32,
}

impl Quantizer {
    /// Codes and scales of `[rows, cols]`.
    fn run(&self, x: &[f32], [rows, cols]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
        let table = table(self.dtype);
        let largest = table[table.len() - 1] as f32;
        let (mut codes, mut scales) = (vec![0.0; x.len()], vec![]);
        for row in (0..rows).step_by(self.group[0]) {
            for col in (0..cols).step_by(self.group[1]) {
                let rows = row..rows.min(row + self.group[0]);
                let cells: Vec<usize> = rows
                    .flat_map(|r| (col..cols.min(col + self.group[1])).map(move |c| r * cols + c))
                    .collect();
                let sizes = cells.iter().map(|i| x[*i].abs()).filter(|s| s.is_finite());
                let amax = sizes.fold(self.floor, f32::max);
                let ratio = amax / largest;
                let scale = match ratio {
                    0.0 => 1.0,
                    _ if self.pow2 => power_not_below(ratio),
                    _ => ratio,
                };
                scales.push(f64::from(scale));
                for i in cells {
                    codes[i] = nearest(&table, x[i] / scale);
                }
            }
        }
        (codes, scales)
    }

    /// The op, with the interpreter.
    fn interpret(&self, x: &[f32], [rows, cols]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
        let name = self.dtype.name();
        let [r, c] = self.group;
        let scale = if self.pow2 { "ue8m0" } else { "f32" };
        let floor = match self.floor {
            0.0 => String::new(),
            floor => format!(", floor = {floor}"),
        };
        let ty = format!("{name}<{r}x{c}, {scale}>[{rows}, {cols}]");
        let attrs = format!("dtype = {name}, group = [{r}, {c}], scale = {scale}{floor}");
        let values = x.iter().map(|x| f64::from(*x)).collect();
        let q = evaluate(
            &format!("%x: f32[{rows}, {cols}]"),
            &format!("%q = quantize %x {{{attrs}}} : {ty}"),
            ("%q", &ty),
            vec![Tensor::f32(&[rows, cols], values)],
        );
        let scales = q.scales.as_ref().expect("it is quantized").numbers();
        (q.numbers(), scales)
    }

    fn check(&self, x: &[f32], dims: [usize; 2]) {
        let (found, expected) = (self.interpret(x, dims), self.run(x, dims));
        same(&found.1, &expected.1, "scale");
        same(&found.0, &expected.0, "code");
    }
}

fn same(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}s");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let equal = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(equal, "{what} {i} is {a:e}, not {b:e}");
    }
}

/// The value of a function of one result, with every rounding.
fn evaluate(params: &str, body: &str, (result, ty): (&str, &str), args: Vec<Tensor>) -> Tensor {
    let head = "weft-ir 1\nmodule case\n\n";
    let module = format!("{head}func @f({params}) -> ({ty}) {{\n  {body}\n  return {result}\n}}\n");
    let module = text::parse(&module).unwrap_or_else(|e| panic!("{e:?}\n{module}"));
    let f = module.find("f").expect("the function");
    Interp::new(&module, Precision::Stated).run(f, args).expect("it has a value").remove(0)
}

/// Values from a generator of its own, in -1..1.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

const FORMATS: [DType; 3] = [DType::E4m3, DType::E5m2, DType::E5m6];

#[test]
fn every_bf16_pattern_is_rounded_to_the_nearest_value() {
    for dtype in FORMATS {
        let table = table(dtype);
        let patterns = (0..=u16::MAX).map(|high| f32::from_bits(u32::from(high) << 16));
        // And what lies between two neighbours, and beside it.
        let middles = table.windows(2).flat_map(|w| {
            let middle = ((w[0] + w[1]) / 2.0) as f32;
            [middle, -middle, middle.next_up(), middle.next_down()]
        });
        for x in patterns.chain(middles) {
            let found = f64::from(weft_ir::formats::round(dtype, x));
            same(&[found], &[nearest(&table, x)], &format!("{} of {x:e}:", dtype.name()));
        }
    }
}

#[test]
fn codes_and_scales_of_edge_blocks() {
    let (rows, cols) = (5, 300);
    let plain = random(rows * cols, 1);
    let with = |change: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
        plain.iter().enumerate().map(|(i, x)| change(i, *x)).collect()
    };
    let blocks = [
        plain.clone(),
        with(&|_, _| 0.0),
        with(&|_, _| -0.0),
        with(&|_, x| x * 1e-40),
        with(&|_, x| x * 1e-44),
        with(&|_, x| x * 3e38),
        with(&|i, x| if i % 300 == 7 { 1e30 } else { x }),
        with(&|i, x| if i % 300 == 7 { 1e-30 } else { x * 1e-38 }),
        with(&|i, x| if i % 97 == 3 { f32::INFINITY } else { x }),
        with(&|i, x| if i % 97 == 3 { f32::NEG_INFINITY } else { x }),
        with(&|i, x| if i % 97 == 3 { f32::NAN } else { x }),
        with(&|_, _| f32::NAN),
        with(&|_, _| f32::INFINITY),
    ];
    for x in &blocks {
        for dtype in FORMATS {
            for group in [[1, 128], [128, 1], [128, 128], [2, 7]] {
                for pow2 in [false, true] {
                    Quantizer { dtype, group, pow2, floor: 0.0 }.check(x, [rows, cols]);
                }
            }
        }
    }
}

#[test]
fn published_scales_of_activations() {
    // amax 3, 448 and 0 under the floor of the published code, for both kinds of scale.
    for (amax, scale, power) in
        [(3.0, 0.00669643, 2f64.powi(-7)), (448.0, 1.0, 1.0), (0.0, 2.232e-7, 2f64.powi(-22))]
    {
        let mut x = vec![0.0; 128];
        x[5] = amax;
        let q = |pow2| Quantizer { dtype: DType::E4m3, group: [1, 128], pow2, floor: 1e-4 };
        q(false).check(&x, [1, 128]);
        let (codes, scales) = q(false).interpret(&x, [1, 128]);
        assert!((scales[0] / scale - 1.0).abs() < 1e-4, "{} for {amax}", scales[0]);
        assert_eq!(codes[5], if amax == 0.0 { 0.0 } else { 448.0 });
        let (codes, scales) = q(true).interpret(&x, [1, 128]);
        assert_eq!(scales, [power]);
        assert_eq!(codes[5], if amax == 3.0 { 384.0 } else { f64::from(amax) });
    }
}

/// How products of codes are summed.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sum {
    Wide,
    Hopper { promote: bool },
}

/// `Σ_k x[i, k] w[j, k]` of e4m3 codes, every product a whole number of 2^-18.
fn product(x: (&[f64], &[f64]), w: (&[f64], &[f64]), [m, n, k]: [usize; 3], sum: Sum) -> Vec<f64> {
    let groups = k.div_ceil(128);
    let unit = 2f64.powi(-18);
    let mut out = vec![];
    for i in 0..m {
        for j in 0..n {
            let whole = |t: usize| (x.0[i * k + t] * w.0[j * k + t] / unit) as i64;
            let mut total = 0.0f32;
            for g in 0..groups {
                let terms: Vec<i64> = (g * 128..k.min(g * 128 + 128)).map(whole).collect();
                let partial = match sum {
                    Sum::Wide => terms.iter().fold(0.0f32, |sum, t| sum + *t as f32),
                    Sum::Hopper { .. } => terms.chunks(32).fold(0, step) as f32,
                };
                let scale = x.1[i * groups + g] as f32 * w.1[j / 128 * groups + g] as f32;
                total = (partial * unit as f32).mul_add(scale, total);
            }
            if sum == (Sum::Hopper { promote: false }) {
                let all: Vec<i64> = (0..k).map(whole).collect();
                total = all.chunks(32).fold(0, step) as f32 * unit as f32;
            }
            out.push(f64::from(total));
        }
    }
    out
}

/// One step of a Hopper tensor core on integers: 14 bits of the largest, the rest cut off.
fn step(sum: i64, terms: &[i64]) -> i64 {
    let all = || terms.iter().copied().chain([sum]);
    let bits = all().map(|v| 64 - v.unsigned_abs().leading_zeros()).max().unwrap_or(0);
    let cut = bits.saturating_sub(14);
    all().map(|v| v.signum() * (v.abs() >> cut << cut)).sum()
}

/// The product that the interpreter forms of two quantized operands.
fn interpret_product(x: &[f32], w: &[f32], [m, n, k]: [usize; 3], sum: Sum) -> Tensor {
    let how = match sum {
        Sum::Wide => "promote = 128",
        Sum::Hopper { promote: true } => "promote = 128, accumulate = hopper14",
        Sum::Hopper { promote: false } => "accumulate = hopper14",
    };
    let q = |x: &str, group: &str, rows: usize| {
        let sides = group.replace('x', ", ");
        format!(
            "quantize {x} {{dtype = e4m3, group = [{sides}], scale = f32}} \
             : e4m3<{group}, f32>[{rows}, {k}]"
        )
    };
    let body = format!(
        "%xq = {}\n  %wq = {}\n  %y = matmul %xq, %wq {{ty = true, dtype = f32, {how}}} \
         : f32[{m}, {n}]",
        q("%x", "1x128", m),
        q("%w", "128x128", n)
    );
    let tensor =
        |v: &[f32], rows| Tensor::f32(&[rows, k], v.iter().map(|x| f64::from(*x)).collect());
    evaluate(
        &format!("%x: f32[{m}, {k}], %w: f32[{n}, {k}]"),
        &body,
        ("%y", &format!("f32[{m}, {n}]")),
        vec![tensor(x, m), tensor(w, n)],
    )
}

#[test]
fn products_of_codes_sum_block_by_block() {
    for [m, n, k] in [[3, 5, 300], [2, 130, 128], [4, 3, 31]] {
        let (x, w) = (random(m * k, 2), random(n * k, 3));
        let q = |group| Quantizer { dtype: DType::E4m3, group, pow2: false, floor: 0.0 };
        let (xq, wq) = (q([1, 128]).run(&x, [m, k]), q([128, 128]).run(&w, [n, k]));
        for sum in [Sum::Wide, Sum::Hopper { promote: true }] {
            let found = interpret_product(&x, &w, [m, n, k], sum).numbers();
            let expected = product((&xq.0, &xq.1), (&wq.0, &wq.1), [m, n, k], sum);
            same(&found, &expected, &format!("{sum:?} {m}x{n}x{k}, element"));
        }
    }
}

/// A block is a chain in f32 in order of k: what is small beside the sum so far is lost, and not
/// what comes after that sum is gone.
#[test]
fn blocks_are_summed_in_order_of_k() {
    let tiny = 2f32.powi(-9);
    let sum = |x: [f32; 3], w: [f32; 3]| interpret_product(&x, &w, [1, 1, 3], Sum::Wide).numbers();
    assert_eq!(sum([448.0, tiny, -448.0], [448.0, tiny, 448.0]), [0.0]);
    assert_eq!(sum([448.0, -448.0, tiny], [448.0, 448.0, tiny]), [2f64.powi(-18)]);
}

/// What 14 bits lose over 4096 terms, and what emptying the accumulator every 128 terms saves:
/// `max |C - exact| / rms(exact)`.
#[test]
fn promotion_keeps_long_sums() {
    let (m, n, k) = (16, 16, 4096);
    for normal in [true, false] {
        let draw = |rows: usize, seed: u64| -> Vec<f32> {
            let unit: Vec<f32> = random(rows * k * 12, seed);
            let mut x: Vec<f32> = match normal {
                // The sum of 12 uniform values of variance 1/3, over 2.
                true => unit.chunks(12).map(|c| c.iter().sum::<f32>() / 2.0).collect(),
                false => unit.chunks(12).map(|c| (c[0] + 1.0) / 2.0).collect(),
            };
            // Scales are 1, so that nothing but the sum rounds.
            x.iter_mut().step_by(128).for_each(|x| *x = 448.0);
            let table = table(DType::E4m3);
            x.iter().map(|x| nearest(&table, *x) as f32).collect()
        };
        let (mut x, mut w) = (draw(m, 5), draw(n, 6));
        // The large value of one operand meets nothing in the other.
        x.chunks_mut(128).for_each(|c| c.swap(0, 1));
        x.iter_mut().step_by(128).for_each(|x| *x = 0.0);
        w.iter_mut().skip(1).step_by(128).for_each(|w| *w = 0.0);
        let exact: Vec<f64> = (0..m * n)
            .map(|e| {
                let (i, j) = (e / n, e % n);
                (0..k).map(|t| f64::from(x[i * k + t]) * f64::from(w[j * k + t])).sum()
            })
            .collect();
        let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
        let off = |sum| {
            let found = interpret_product(&x, &w, [m, n, k], sum).numbers();
            let scales = (vec![1.0; m * k / 128], vec![1.0; k / 128]);
            let f64s = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let (codes_x, codes_w) = (f64s(&x), f64s(&w));
            let again = product((&codes_x, &scales.0), (&codes_w, &scales.1), [m, n, k], sum);
            same(&found, &again, "element");
            let worst = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            println!("normal {normal}, {sum:?}: {:.4} %", 100.0 * worst / rms);
            worst / rms
        };
        let (cut, kept) = (off(Sum::Hopper { promote: false }), off(Sum::Hopper { promote: true }));
        let least = if normal { 0.005 } else { 0.05 };
        assert!(cut > least, "{cut} without promotion");
        assert!(kept < 0.001, "{kept} with promotion");
    }
}
