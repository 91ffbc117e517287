//! Norms, softmax, rotary embedding, cross entropy.

use crate::one_op::{close, f, i, run, run1, try_run};
use weft_ir::attr::Attrs;
use weft_ir::interp::{Precision, Tensor};
use weft_ir::op::Op;

#[test]
fn rms_norm_divides_by_the_root_of_the_mean_square() {
    let xs = [f(&[1, 2], &[3.0, 4.0]), f(&[2], &[1.0, 2.0])];
    let ys = run(Op::RmsNorm, &xs, Attrs::new().float("eps", 0.0));
    let r = 1.0 / 12.5f64.sqrt();
    close(&ys[0], &[3.0 * r, 8.0 * r]);
    close(&ys[1], &[r]);
}

#[test]
fn softmax_of_logarithms_is_shares() {
    let x = f(&[2, 2], &[1f64.ln(), 3f64.ln(), 1000.0, 1000.0]);
    close(&run1(Op::Softmax, &[x], Attrs::new()), &[0.25, 0.75, 0.5, 0.5]);
}

/// Two positions, one head, two pairs; frequencies that make quarter turns.
fn turned(x: &[f64], attrs: Attrs) -> Tensor {
    let quarter = std::f64::consts::FRAC_PI_2;
    let xs = [f(&[1, 2, 1, 4], x), i(&[1, 2], &[1, 2]), f(&[2], &[quarter, 2.0 * quarter])];
    run1(Op::Rotary, &xs, attrs)
}

#[test]
fn rotary_turns_neighbours_or_halves() {
    let x = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
    // Position 1 turns pair 0 by a quarter and pair 1 by a half, position 2 by a half and a whole.
    let interleaved = Attrs::new().flag("interleaved", true);
    close(&turned(&x, interleaved.clone()), &[-2.0, 1.0, -3.0, -4.0, -1.0, -2.0, 3.0, 4.0]);
    close(&turned(&x, Attrs::new()), &[-3.0, -2.0, 1.0, -4.0, -1.0, 2.0, -3.0, 4.0]);
    for attrs in [interleaved, Attrs::new()] {
        let there = turned(&x, attrs.clone()).numbers();
        close(&turned(&there, attrs.flag("inverse", true)), &x);
    }
}

#[test]
fn rotary_rounds_the_angle_as_f32_programs_do() {
    let (position, freq) = (4001i64, 0.1f32);
    let xs = [f(&[1, 1, 1, 2], &[1.0, 0.0]), i(&[1, 1], &[position]), f(&[1], &[freq as f64])];
    let y = try_run(Op::Rotary, 0, &xs, &Attrs::new(), Precision::Stated).unwrap();
    let angle = position as f32 * freq;
    let want = [(angle as f64).cos() as f32 as f64, (angle as f64).sin() as f32 as f64];
    assert_eq!(y[0].floats().unwrap(), want);
}

#[test]
fn cross_entropy_skips_negative_targets() {
    let logits = f(&[2, 2], &[1f64.ln(), 3f64.ln(), 0.0, 0.0]);
    let targets = i(&[2], &[0, -1]);
    let ys = run(Op::CrossEntropy, &[logits.clone(), targets.clone()], Attrs::new());
    close(&ys[0], &[4f64.ln(), 0.0]);
    close(&ys[1], &[4f64.ln(), 2f64.ln()]);
    let xs = [logits, targets, ys[1].clone(), f(&[2], &[2.0, 5.0])];
    close(&run1(Op::CrossEntropyGrad, &xs, Attrs::new()), &[-1.5, 1.5, 0.0, 0.0]);
}

/// The rule gives `Σ dy dx/dx_i`; check it against central differences of the forward op.
#[test]
fn rms_norm_grad_is_the_derivative() {
    let (x, g, dy) = ([0.3, -1.2, 0.7], [1.1, 0.4, -0.9], [0.5, 0.25, -2.0]);
    let attrs = Attrs::new().float("eps", 1e-3);
    let forward = |x: &[f64]| run(Op::RmsNorm, &[f(&[1, 3], x), f(&[3], &g)], attrs.clone());
    let loss =
        |x: &[f64]| -> f64 { forward(x)[0].numbers().iter().zip(&dy).map(|(y, dy)| y * dy).sum() };
    let xs = [f(&[1, 3], &x), f(&[3], &g), forward(&x)[1].clone(), f(&[1, 3], &dy)];
    let dx = run1(Op::RmsNormGrad, &xs, Attrs::new()).numbers();
    for d in 0..3 {
        let at = |h: f64| {
            let mut moved = x;
            moved[d] += h;
            loss(&moved)
        };
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((slope - dx[d]).abs() < 1e-8, "{slope} {}", dx[d]);
    }
}
