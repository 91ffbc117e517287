//! Attention by hand: widths of one make scores plain products, and logarithms make weights plain
//! numbers.

use crate::one_op::{close, f, i, run, try_run};
use weft_ir::attr::Attrs;
use weft_ir::interp::{Precision, Tensor};
use weft_ir::op::Op;

fn attrs(parts: i64) -> Attrs {
    Attrs::new().int("parts", parts).float("scale", 1.0)
}

/// One batch and one head of width one.
fn row(x: &[f64]) -> Tensor {
    f(&[1, x.len(), 1, 1], x)
}

fn ln(x: f64) -> f64 {
    x.ln()
}

#[test]
fn causal_rows_see_what_is_before_them() {
    // Weights 1 : 3 : 4 where all is seen.
    let xs = [row(&[1.0; 3]), row(&[ln(1.0), ln(3.0), ln(4.0)]), row(&[8.0, 16.0, 32.0])];
    let ys = run(Op::Attention, &xs, attrs(1).flag("causal", true));
    close(&ys[0], &[8.0, 14.0, 23.0]);
    close(&ys[1], &[ln(1.0), ln(4.0), ln(8.0)]);
    let ys = run(Op::Attention, &xs, attrs(1));
    close(&ys[0], &[23.0, 23.0, 23.0]);
}

#[test]
fn an_offset_moves_the_diagonal_of_each_batch() {
    let k = [ln(1.0), ln(3.0), ln(4.0)];
    let v = [8.0, 16.0, 32.0];
    let two = |x: &[f64]| f(&[2, 3, 1, 1], &[x, x].concat());
    let xs = [f(&[2, 1, 1, 1], &[1.0, 1.0]), two(&k), two(&v), i(&[2], &[0, 1])];
    let ys = run(Op::Attention, &xs, attrs(1).flag("causal", true).flag("offset", true));
    close(&ys[0], &[8.0, 14.0]);
}

#[test]
fn keys_lie_where_the_pages_of_a_request_are() {
    let (seen, other) = (ln(1.0), ln(100.0));
    // Pages 0 to 3; request 0 has pages 2 and 1, request 1 page 3.
    let k = [other, other, ln(4.0), other, seen, ln(3.0), ln(3.0), other];
    let v = [-1.0, -1.0, 32.0, -1.0, 8.0, 16.0, 10.0, -1.0];
    let pool = |x: &[f64]| f(&[4, 2, 1, 1], x);
    let attrs = attrs(1).flag("causal", true).flag("offset", true).flag("pages", true);
    let pages = |table: &[i64]| {
        let q = f(&[2, 1, 1, 1], &[1.0, 1.0]);
        let xs = [q, pool(&k), pool(&v), i(&[2], &[2, 0]), i(&[2, 2], table)];
        try_run(Op::Attention, 0, &xs, &attrs, Precision::F64)
    };
    let ys = pages(&[2, 1, 3, -1]).unwrap();
    close(&ys[0], &[23.0, 10.0]);
    close(&ys[1], &[ln(8.0), ln(3.0)]);
    // What is seen has a page; what is not need have none.
    let none = pages(&[2, -1, 3, -1]).unwrap_err();
    assert_eq!(none.why, "position 2 of request 0 is of page -1, and the pool has 4");
    let far = pages(&[2, 1, 4, -1]).unwrap_err();
    assert_eq!(far.why, "position 0 of request 1 is of page 4, and the pool has 4");
}

#[test]
fn segments_do_not_see_each_other_and_a_blind_row_is_zero() {
    let xs = [
        row(&[1.0; 3]),
        row(&[ln(1.0), ln(3.0), ln(4.0)]),
        row(&[8.0, 16.0, 32.0]),
        i(&[1, 3], &[0, 1, 7]),
        i(&[1, 3], &[0, 1, 1]),
    ];
    let ys = run(Op::Attention, &xs, attrs(1).flag("segments", true));
    close(&ys[0], &[8.0, 16.0 * 3.0 / 7.0 + 32.0 * 4.0 / 7.0, 0.0]);
    assert_eq!(ys[1].numbers()[2], f64::NEG_INFINITY);
    let both = attrs(1).flag("segments", true).flag("causal", true);
    let ys = run(Op::Attention, &xs, both.clone());
    close(&ys[0], &[8.0, 16.0, 0.0]);

    let grads = run(
        Op::AttentionGrad,
        &[&xs[..3], &[ys[0].clone(), ys[1].clone(), row(&[1.0; 3])], &xs[3..]].concat(),
        both,
    );
    assert!(grads.iter().all(|g| g.numbers().iter().all(|x| x.is_finite())));
    // The blind row has no derivative; key 2 is seen by no row.
    assert_eq!(grads[0].numbers()[2], 0.0);
    assert_eq!((grads[1].numbers()[2], grads[2].numbers()[2]), (0.0, 0.0));
}

#[test]
fn parts_of_the_score_add_up() {
    let xs = [
        row(&[2.0]),
        row(&[1.0]),
        row(&[ln(1.0), ln(2.0)]),
        row(&[ln(1.0), ln(0.75)]),
        row(&[8.0, 16.0]),
    ];
    // 2 ln 2 + ln 0.75 = ln 3.
    let ys = run(Op::Attention, &xs, attrs(2));
    close(&ys[0], &[14.0]);
    // Half the scale: weights 1 : √3.
    let ys = run(Op::Attention, &xs, attrs(2).float("scale", 0.5));
    let root = 3f64.sqrt();
    close(&ys[0], &[(8.0 + 16.0 * root) / (1.0 + root)]);
}

#[test]
fn query_heads_share_the_heads_of_keys_and_values() {
    // Four query heads; two heads of keys, one of values of width two.
    let q = f(&[1, 1, 4, 1], &[1.0; 4]);
    let k = f(&[1, 2, 2, 1], &[ln(1.0), ln(1.0), ln(1.0), ln(3.0)]);
    let v = f(&[1, 2, 1, 2], &[8.0, 0.0, 16.0, 1.0]);
    let ys = run(Op::Attention, &[q, k, v], attrs(1));
    assert_eq!(ys[0].dims, [1, 1, 4, 2]);
    close(&ys[0], &[12.0, 0.5, 12.0, 0.5, 14.0, 0.75, 14.0, 0.75]);
    close(&ys[1], &[ln(2.0), ln(2.0), ln(4.0), ln(4.0)]);
}

/// Every derivative against central differences of `Σ do o`.
#[test]
fn the_gradient_is_the_derivative() {
    let number = |i: usize, seed: f64| (i as f64 * 1.7 + seed).sin();
    let tensor = |dims: &[usize], seed: f64| {
        let n: usize = dims.iter().product();
        f(dims, &(0..n).map(|i| number(i, seed)).collect::<Vec<_>>())
    };
    let xs = [
        tensor(&[2, 2, 4, 3], 0.1),
        tensor(&[2, 2, 4, 2], 0.2),
        tensor(&[2, 3, 2, 3], 0.3),
        tensor(&[2, 3, 1, 2], 0.4),
        tensor(&[2, 3, 4, 2], 0.5),
    ];
    let start = i(&[2], &[0, 1]);
    let attrs =
        Attrs::new().int("parts", 2).float("scale", 0.7).flag("causal", true).flag("offset", true);
    let forward = |xs: &[Tensor]| {
        run(Op::Attention, &[xs, std::slice::from_ref(&start)].concat(), attrs.clone())
    };
    let d_o = tensor(&[2, 2, 4, 2], 0.6);
    let loss = |xs: &[Tensor]| -> f64 {
        forward(xs)[0].numbers().iter().zip(d_o.numbers()).map(|(o, d)| o * d).sum()
    };
    let ys = forward(&xs);
    let operands = [&xs[..], &[ys[0].clone(), ys[1].clone(), d_o.clone(), start.clone()]].concat();
    let grads = run(Op::AttentionGrad, &operands, attrs.clone());
    for (place, x) in xs.iter().enumerate() {
        for e in 0..x.len() {
            let at = |h: f64| {
                let mut moved = xs.to_vec();
                let mut data = x.numbers();
                data[e] += h;
                moved[place] = f(&x.dims, &data);
                loss(&moved)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            let found = grads[place].numbers()[e];
            assert!((slope - found).abs() < 1e-8, "operand {place}[{e}]: {slope} {found}");
        }
    }
}
