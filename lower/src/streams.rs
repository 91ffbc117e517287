//! On which stream of a GPU each step is.
//!
//! What ranks send each other has a stream of its own where `overlap` says so. Steps that compute
//! share one, unless the machine is given several: then, in the order of the program, a launch too
//! narrow to fill the machine goes to the stream on which it can begin first, by what its buffers
//! and those before it say; wide launches and loops stay on the first. The costs are bytes that
//! could be moved in the same time, estimates that decide about nothing but that.

use weft_graph::order::{Storage, n_streams};
use weft_graph::{BufferId, Entry, Launch, Step};

/// The stream of what ranks send each other.
pub const TRANSFERS: u32 = 1;

/// What a machine with streams does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// Streams that compute.
    pub n: u32,
    /// Blocks of a launch beside which there is room for another.
    pub narrow_max: i64,
}

/// Multiply-adds of bf16 that tensor cores do in the time of a byte, about: 989 TFLOP/s and
/// 3.35 TB/s of an H100.
const FLOPS_PER_BYTE: i64 = 295;
/// Bytes that could be moved in the time that a launch takes by itself, some 2 µs.
const LAUNCH_BYTES: i64 = 6 << 20;

/// Gives each step its stream and the waits that follow from that.
pub fn choose(entry: &mut Entry, streams: Option<Streams>) {
    let Some(streams) = streams else { return };
    if streams.n > 1 {
        let mut steps = std::mem::take(&mut entry.steps);
        spread(entry, &mut steps, streams);
        entry.steps = steps;
    }
    if n_streams(&entry.steps) > 1 {
        let storage = Storage::unplaced(entry);
        entry.order(&storage);
    }
}

/// Puts the launches of a body onto the streams; returns what it costs.
fn spread(entry: &Entry, steps: &mut [Step], streams: Streams) -> i64 {
    let dims = entry.dims_max();
    // When each buffer was last written and last read, and when each stream is free.
    let mut touched = vec![[0i64; 2]; entry.buffers.len()];
    let mut free = vec![0i64; streams.n as usize];
    for step in steps {
        let (cost, narrow) = match step {
            Step::Launch(l) => (cost(l, &dims), l.grid.eval(&dims) <= streams.narrow_max),
            Step::Copy(c) => (LAUNCH_BYTES + 2 * c.bytes.eval(&dims), false),
            Step::Loop(l) => {
                let turn = spread(entry, &mut l.body, streams);
                (turn.saturating_mul(l.count.eval(&dims).max(0)), false)
            }
            Step::Collective(_) | Step::Message(_) => continue,
        };
        let place = |b: BufferId| entry.storage_of(b).0 as usize;
        let mut ready = 0;
        step.touches(&mut |buffer, writes| {
            let [written, read] = touched[place(buffer)];
            ready = ready.max(written).max(if writes { read } else { 0 });
        });
        let among = if narrow { free.len() } else { 1 };
        let start = |s: &usize| free[*s].max(ready);
        let on = (0..among).min_by_key(start).unwrap_or(0);
        let done = start(&on).saturating_add(cost);
        free[on] = done;
        step.touches(&mut |buffer, writes| {
            let at = &mut touched[place(buffer)][usize::from(!writes)];
            *at = done.max(*at);
        });
        step.order_mut().stream = if on == 0 { 0 } else { TRANSFERS + on as u32 };
    }
    free.into_iter().max().unwrap_or(0)
}

fn cost(launch: &Launch, dims: &[i64]) -> i64 {
    let flops = launch.flops.eval(dims) / FLOPS_PER_BYTE;
    LAUNCH_BYTES + launch.bytes.eval(dims).max(flops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_graph::{Arg, Buffer, DType, KernelId, Role};

    fn launch(reads: &[u32], writes: u32, grid: i64) -> Step {
        let args = reads.iter().chain([&writes]).map(|b| Arg::whole(BufferId(*b))).collect();
        let writes = Some(vec![reads.len() as u32]);
        Step::Launch(Launch { writes, ..Launch::new(KernelId(0), args, grid.into(), "k") })
    }

    /// Two chains of narrow launches, and what needs both.
    fn streams(grid: i64, n: u32) -> Vec<(u32, usize)> {
        let temp = |i| {
            let role = Role::Temp { offset: 0 };
            Buffer::new(format!("b{i}"), DType::U8, vec![64.into()], role)
        };
        let steps = vec![
            launch(&[0], 1, grid),
            launch(&[0], 2, grid),
            launch(&[1], 3, grid),
            launch(&[2], 4, grid),
            launch(&[3, 4], 5, grid),
        ];
        let mut entry = Entry { buffers: (0..6).map(temp).collect(), steps, ..Entry::default() };
        choose(&mut entry, Some(Streams { n, narrow_max: 66 }));
        entry.steps.iter().map(|s| (s.order().stream, s.order().waits.len())).collect()
    }

    #[test]
    fn narrow_launches_run_side_by_side() {
        assert_eq!(streams(8, 2), [(0, 0), (2, 0), (0, 0), (2, 0), (0, 1)]);
    }

    #[test]
    fn wide_launches_and_a_single_stream_stay_in_order() {
        assert!(streams(132, 2).iter().all(|s| *s == (0, 0)));
        assert!(streams(8, 1).iter().all(|s| *s == (0, 0)));
    }
}
