//! Chunks on two streams of a GPU: compute, and exchanges with experts.
//!
//! A *chunk* is what a stage does with a micro-batch. Alone, a forward waits for its exchanges, and
//! a backward lays the weight gradients under its own. A pair weaves the forward of one micro-batch
//! with the backward of another, layer by layer, the two half a layer apart:
//!
//! ```text
//! compute   mlp(B) mlp(W)      mlp(F)     | attn(B)    attn(W) attn(F)
//! exchange  dispatch(F)  dispatch(B)      | combine(F)     combine(B)
//! ```

use crate::cluster::{Cluster, Overlap};
use crate::kernel::Place;
use crate::streams::{Streams, Transfer};
use crate::unit::{Part, Passes, Unit};

/// Seconds of a layer's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    pub attention: f64,
    pub mlp: f64,
    /// On the exchange stream.
    pub dispatch: Transfer,
    pub combine: Transfer,
}

impl Times {
    pub fn compute(&self) -> f64 {
        self.attention + self.mlp
    }
}

/// Seconds of a unit: forward, input gradient, weight gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UnitTimes {
    pub forward: Times,
    pub input: Times,
    pub weight: Times,
}

impl UnitTimes {
    /// With the collectives of tensor parallelism, which a layer's forward takes `seconds` for.
    pub fn with_collectives(mut self, seconds: f64) -> UnitTimes {
        // Half around attention, half around what follows; the backward does the same.
        for t in [&mut self.forward, &mut self.input] {
            t.attention += if t.attention > 0.0 { seconds / 2.0 } else { 0.0 };
            t.mlp += if t.mlp > 0.0 { seconds / 2.0 } else { 0.0 };
        }
        self
    }

    pub fn of(unit: &Unit, cluster: &Cluster, at: &Place) -> UnitTimes {
        let o = cluster.overlap;
        // Ranks that exchange alone come to it together.
        let alone = Overlap { dispatch: 1.0, dispatch_again: 1.0, combine: 1.0, wait_us: 0.0, ..o };
        let o = if at.beside_exchange { o } else { alone };
        UnitTimes {
            forward: times(&unit.forward, cluster, at, o.dispatch, &o),
            // Along the way that the forward found: its counts are known.
            input: times(&unit.input, cluster, at, o.dispatch_again, &o),
            weight: times(&unit.weight, cluster, at, 1.0, &o),
        }
    }
}

fn times(p: &Passes, cluster: &Cluster, at: &Place, dispatch: f64, o: &Overlap) -> Times {
    let sum = |part: &Part| part.iter().map(|k| k.seconds(cluster, at)).fold(0.0, |a, b| a + b);
    let both = p.dispatch.iter().chain(&p.combine);
    let local = both.map(|k| k.local_seconds(cluster, at)).fold(0.0, |a, b| a + b);
    Times {
        attention: sum(&p.attention),
        mlp: sum(&p.mlp) + sum(&p.beside) + local,
        dispatch: transfer(&p.dispatch, cluster, at, dispatch, o),
        combine: transfer(&p.combine, cluster, at, o.combine, o),
    }
}

/// Exchanges of a part, one behind the other and each waited for; `factor` times as long as alone.
pub fn transfer(part: &Part, cluster: &Cluster, at: &Place, factor: f64, o: &Overlap) -> Transfer {
    let seconds = part.iter().map(|k| k.seconds(cluster, at)).filter(|s| *s > 0.0);
    seconds.fold(Transfer::default(), |t, s| Transfer {
        seconds: t.seconds + s * factor,
        wait: t.wait + o.wait_us * 1e-6,
    })
}

/// A forward of some units by itself.
pub fn forward(units: &[UnitTimes]) -> Streams {
    let mut w = Streams::default();
    let mut done = 0.0;
    for (i, u) in units.iter().enumerate() {
        let f = &u.forward;
        done = w.compute("attn(F)", i, f.attention, done);
        done = w.exchange("dispatch(F)", i, f.dispatch, done);
        done = w.compute("mlp(F)", i, f.mlp, done);
        done = w.exchange("combine(F)", i, f.combine, done);
    }
    w
}

/// A backward of some units, the last first; without weight gradients an input gradient.
pub fn backward(units: &[UnitTimes], weights: bool) -> Streams {
    let mut w = Streams::default();
    let mut done = 0.0;
    for (i, u) in units.iter().rev().enumerate() {
        done = w.exchange("combine(B)", i, u.input.dispatch, done);
        done = w.compute("mlp(B)", i, u.input.mlp, done);
        let back = w.exchange("dispatch(B)", i, u.input.combine, done);
        if weights {
            done = w.compute("mlp(W)", i, u.weight.mlp, done);
        }
        done = w.compute("attn(B)", i, u.input.attention, back.max(done));
        if weights {
            // Under the next layer's exchange.
            w.compute("attn(W)", i, u.weight.attention, done);
        }
    }
    w
}

/// The weight gradients of some units.
pub fn weight(units: &[UnitTimes]) -> Streams {
    let mut w = Streams::default();
    for (i, u) in units.iter().rev().enumerate() {
        w.compute("mlp(W)", i, u.weight.mlp, 0.0);
        w.compute("attn(W)", i, u.weight.attention, 0.0);
    }
    w
}

/// The forward of `ahead` woven with the backward of `back`. Where the one has other layers than
/// the other, the shorter starts with the layer of the longer that is best for both.
pub fn pair(ahead: &[UnitTimes], back: &[UnitTimes]) -> Streams {
    let most = ahead.len().max(back.len());
    // Of equals the first: both start together.
    let later = (0..=most).flat_map(|n| [(0, n), (n, 0)]).map(|l| shifted(ahead, back, l));
    later.reduce(|best, w| if w.seconds() < best.seconds() { w } else { best }).unwrap_or_default()
}

/// A pair of which each starts so many layers later than the other.
fn shifted(ahead: &[UnitTimes], back: &[UnitTimes], later: (usize, usize)) -> Streams {
    let mut w = Streams::default();
    let back: Vec<UnitTimes> = back.iter().rev().copied().collect();
    let (mut forward, mut backward) = (0.0, 0.0);
    for i in 0..(ahead.len() + later.0).max(back.len() + later.1) {
        let f = i.checked_sub(later.0).and_then(|i| ahead.get(i)).copied().unwrap_or_default();
        let b = i.checked_sub(later.1).and_then(|i| back.get(i)).copied().unwrap_or_default();
        backward = w.exchange("combine(B)", i, b.input.dispatch, backward);
        forward = w.compute("attn(F)", i, f.forward.attention, forward);
        backward = w.compute("mlp(B)", i, b.input.mlp, backward);
        forward = w.exchange("dispatch(F)", i, f.forward.dispatch, forward);
        w.compute("mlp(W)", i, b.weight.mlp, backward);
        backward = w.exchange("dispatch(B)", i, b.input.combine, backward);
        forward = w.compute("mlp(F)", i, f.forward.mlp, forward);
        forward = w.exchange("combine(F)", i, f.forward.combine, forward);
        backward = w.compute("attn(B)", i, b.input.attention, backward);
        w.compute("attn(W)", i, b.weight.attention, backward);
    }
    w
}
