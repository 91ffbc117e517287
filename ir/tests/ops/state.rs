//! States.

use crate::one_op::{close, counting, f, i, try_run};
use weft_ir::attr::Attrs;
use weft_ir::interp::Precision;
use weft_ir::op::Op;

#[test]
fn read_and_assign() {
    let held = try_run(Op::Read, 1, &[counting(&[3])], &Attrs::new(), Precision::F64).unwrap();
    assert_eq!(held, [counting(&[3])]);
    let xs = [counting(&[2]), f(&[2], &[8.0, 9.0])];
    let held = try_run(Op::Assign, 1, &xs, &Attrs::new(), Precision::F64).unwrap();
    assert_eq!(held, [f(&[2], &[8.0, 9.0])]);
}

#[test]
fn cache_append_writes_at_each_rows_own_position() {
    let cache = f(&[2, 4, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let x = f(&[2, 2, 1], &[-1.0, -2.0, -3.0, -4.0]);
    let append = |start: &[i64]| {
        let xs = [cache.clone(), x.clone(), i(&[2], start)];
        try_run(Op::CacheAppend, 1, &xs, &Attrs::new(), Precision::F64)
    };
    let want = f(&[2, 4, 1], &[-1.0, -2.0, 3.0, 4.0, 5.0, 6.0, -3.0, -4.0]);
    assert_eq!(append(&[0, 2]).unwrap(), [want.clone(), want]);
    let full = append(&[0, 3]).unwrap_err();
    assert_eq!(full.why, "position 3 + 1 is not within 0..4");
    assert!(append(&[-1, 0]).is_err());
}

#[test]
fn cache_append_writes_into_the_pages_of_each_row() {
    // Three pages of two positions; row 0 has pages 2 and 0, row 1 page 1.
    let pool = f(&[3, 2, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let x = f(&[2, 2, 1], &[-1.0, -2.0, -3.0, -4.0]);
    let append = |start: &[i64], pages: &[i64]| {
        let xs = [pool.clone(), x.clone(), i(&[2], start), i(&[2, 2], pages)];
        try_run(Op::CacheAppend, 1, &xs, &Attrs::new(), Precision::F64)
    };
    let want = f(&[3, 2, 1], &[-2.0, 2.0, -3.0, -4.0, 5.0, -1.0]);
    assert_eq!(append(&[1, 0], &[2, 0, 1, -1]).unwrap(), [want.clone(), want]);
    // A row without a page is written nowhere.
    let want = f(&[3, 2, 1], &[-2.0, 2.0, 3.0, 4.0, 5.0, -1.0]);
    assert_eq!(append(&[1, 0], &[2, 0, -1, -1]).unwrap(), [want.clone(), want]);
    let full = append(&[3, 0], &[2, 0, 1, -1]).unwrap_err();
    assert_eq!(full.why, "position 3 + 1 is not within 0..4");
    let far = append(&[1, 0], &[3, 0, 1, -1]).unwrap_err();
    assert_eq!(far.why, "position 1 of request 0 is of page 3, and the pool has 3");
}

/// AdamW for one weight, in the order the paper writes it.
fn scalar_steps(grads: &[f64]) -> [f64; 3] {
    let (beta1, beta2, eps, decay, lr) = (0.9, 0.95, 1e-8, 0.1, 0.01);
    let (mut w, mut m, mut v) = (0.5f64, 0.0, 0.0);
    for (step, g) in grads.iter().enumerate() {
        let t = step as i32 + 1;
        m = beta1 * m + (1.0 - beta1) * g;
        v = beta2 * v + (1.0 - beta2) * g * g;
        let (m_hat, v_hat) = (m / (1.0 - f64::powi(beta1, t)), v / (1.0 - f64::powi(beta2, t)));
        w -= lr * (m_hat / (v_hat.sqrt() + eps) + decay * w);
    }
    [w, m, v]
}

#[test]
fn adamw_follows_a_scalar_loop() {
    let attrs = Attrs::new().float("beta1", 0.9).float("beta2", 0.95).float("eps", 1e-8);
    let attrs = attrs.float("decay", 0.1);
    let grads = [[0.3, -1.0], [0.2, 0.0], [-0.7, 2.5]];
    let mut states = vec![f(&[2], &[0.5, 0.5]), f(&[2], &[0.0, 0.0]), f(&[2], &[0.0, 0.0])];
    for (step, g) in grads.iter().enumerate() {
        let lr_and_t = [f(&[2], g), f(&[], &[0.01]), f(&[], &[step as f64 + 1.0])];
        let xs = [&states[..], &lr_and_t].concat();
        states = try_run(Op::AdamW, 3, &xs, &attrs, Precision::F64).unwrap();
    }
    for place in 0..2 {
        let want = scalar_steps(&grads.map(|g| g[place]));
        let found: Vec<f64> = states.iter().map(|s| s.numbers()[place]).collect();
        close(&f(&[3], &found), &want);
    }
}
