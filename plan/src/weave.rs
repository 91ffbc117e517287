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
//!
//! Each stream keeps its order; a task starts when its stream is free and what it needs is done.

use crate::cluster::{Cluster, Overlap};
use crate::kernel::{Kernel, Place};
use crate::unit::{Part, Passes, Unit};

/// Seconds of a layer's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    pub attention: f64,
    pub mlp: f64,
    /// On the exchange stream.
    pub dispatch: f64,
    pub combine: f64,
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
    let exchange = |part: &Part, factor: f64| {
        let one = |k: &Kernel| match k.seconds(cluster, at) {
            0.0 => 0.0,
            s => s * factor + o.wait_us * 1e-6,
        };
        part.iter().map(one).fold(0.0, |a, b| a + b)
    };
    let both = p.dispatch.iter().chain(&p.combine);
    let local = both.map(|k| k.local_seconds(cluster, at)).fold(0.0, |a, b| a + b);
    Times {
        attention: sum(&p.attention),
        mlp: sum(&p.mlp) + sum(&p.beside) + local,
        dispatch: exchange(&p.dispatch, dispatch),
        combine: exchange(&p.combine, o.combine),
    }
}

/// Something on a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub name: &'static str,
    /// Which layer of the chunk.
    pub layer: usize,
    pub exchange: bool,
    pub start: f64,
    pub end: f64,
}

/// Tasks of a chunk or a pair, when they ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weave {
    pub tasks: Vec<Task>,
    free: [f64; 2],
}

impl Weave {
    pub fn seconds(&self) -> f64 {
        self.free[0].max(self.free[1])
    }

    /// Adds a task behind those of its stream; it ends at the time that is returned.
    fn put(&mut self, name: &'static str, layer: usize, exchange: bool, t: f64, after: f64) -> f64 {
        if t == 0.0 {
            return after;
        }
        let stream = usize::from(exchange);
        let start = self.free[stream].max(after);
        let end = start + t;
        self.free[stream] = end;
        self.tasks.push(Task { name, layer, exchange, start, end });
        end
    }

    /// Seconds that the exchange stream is busy, and those of them under compute.
    pub fn covered(&self) -> (f64, f64) {
        let of = |exchange: bool| self.tasks.iter().filter(move |t| t.exchange == exchange);
        let busy: f64 = of(true).map(|t| t.end - t.start).sum();
        let both = |e: &Task, c: &Task| (e.end.min(c.end) - e.start.max(c.start)).max(0.0);
        let covered = of(true).flat_map(|e| of(false).map(move |c| both(e, c))).sum();
        (busy, covered)
    }

    /// Seconds that the compute stream is busy.
    pub fn computing(&self) -> f64 {
        self.tasks.iter().filter(|t| !t.exchange).map(|t| t.end - t.start).sum()
    }
}

/// A forward of some units by itself.
pub fn forward(units: &[UnitTimes]) -> Weave {
    let mut w = Weave::default();
    let mut done = 0.0;
    for (i, u) in units.iter().enumerate() {
        let f = &u.forward;
        done = w.put("attn(F)", i, false, f.attention, done);
        done = w.put("dispatch(F)", i, true, f.dispatch, done);
        done = w.put("mlp(F)", i, false, f.mlp, done);
        done = w.put("combine(F)", i, true, f.combine, done);
    }
    w
}

/// A backward of some units, the last first; without weight gradients an input gradient.
pub fn backward(units: &[UnitTimes], weights: bool) -> Weave {
    let mut w = Weave::default();
    let mut done = 0.0;
    for (i, u) in units.iter().rev().enumerate() {
        done = w.put("combine(B)", i, true, u.input.dispatch, done);
        done = w.put("mlp(B)", i, false, u.input.mlp, done);
        let back = w.put("dispatch(B)", i, true, u.input.combine, done);
        if weights {
            done = w.put("mlp(W)", i, false, u.weight.mlp, done);
        }
        done = w.put("attn(B)", i, false, u.input.attention, back.max(done));
        if weights {
            // Under the next layer's exchange.
            w.put("attn(W)", i, false, u.weight.attention, done);
        }
    }
    w
}

/// The weight gradients of some units.
pub fn weight(units: &[UnitTimes]) -> Weave {
    let mut w = Weave::default();
    for (i, u) in units.iter().rev().enumerate() {
        w.put("mlp(W)", i, false, u.weight.mlp, 0.0);
        w.put("attn(W)", i, false, u.weight.attention, 0.0);
    }
    w
}

/// The forward of `ahead` woven with the backward of `back`. Where the one has other layers than
/// the other, the shorter starts with the layer of the longer that is best for both.
pub fn pair(ahead: &[UnitTimes], back: &[UnitTimes]) -> Weave {
    let most = ahead.len().max(back.len());
    // Of equals the first: both start together.
    let later = (0..=most).flat_map(|n| [(0, n), (n, 0)]).map(|l| shifted(ahead, back, l));
    later.reduce(|best, w| if w.seconds() < best.seconds() { w } else { best }).unwrap_or_default()
}

/// A pair of which each starts so many layers later than the other.
fn shifted(ahead: &[UnitTimes], back: &[UnitTimes], later: (usize, usize)) -> Weave {
    let mut w = Weave::default();
    let back: Vec<&UnitTimes> = back.iter().rev().collect();
    let (mut forward, mut backward) = (0.0, 0.0);
    for i in 0..(ahead.len() + later.0).max(back.len() + later.1) {
        let f = i.checked_sub(later.0).and_then(|i| ahead.get(i));
        let b = i.checked_sub(later.1).and_then(|i| back.get(i));
        let part = |t: Option<f64>| t.unwrap_or(0.0);
        backward = w.put("combine(B)", i, true, part(b.map(|b| b.input.dispatch)), backward);
        forward = w.put("attn(F)", i, false, part(f.map(|f| f.forward.attention)), forward);
        backward = w.put("mlp(B)", i, false, part(b.map(|b| b.input.mlp)), backward);
        forward = w.put("dispatch(F)", i, true, part(f.map(|f| f.forward.dispatch)), forward);
        w.put("mlp(W)", i, false, part(b.map(|b| b.weight.mlp)), backward);
        backward = w.put("dispatch(B)", i, true, part(b.map(|b| b.input.combine)), backward);
        forward = w.put("mlp(F)", i, false, part(f.map(|f| f.forward.mlp)), forward);
        forward = w.put("combine(F)", i, true, part(f.map(|f| f.forward.combine)), forward);
        backward = w.put("attn(B)", i, false, part(b.map(|b| b.input.attention)), backward);
        w.put("attn(W)", i, false, part(b.map(|b| b.weight.attention)), backward);
    }
    w
}
