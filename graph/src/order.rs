//! Which steps wait for which, where an entry runs on several streams.
//!
//! Steps of one stream follow one another. Those of different streams are ordered by *events*: one
//! is recorded when a step is done, and a step of another stream waits for it. [`Entry::order`]
//! gives every step the fewest waits that its buffers ask for: it waits where it touches what a
//! step of another stream has written, or writes what that has read, and where nothing that its
//! stream already knows of has waited for that.
//!
//! A body begins and ends on stream 0: the other streams wait for what was there before its first
//! step, and what follows it waits for them. So does every turn of a loop, which keeps all there is
//! to know about order within one body: events are those of the same body, and the loop is a step
//! of stream 0 to what is around it.

use crate::{Arg, BufferId, Entry, Role, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// When a step runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// 0 is the stream that an entry, and each turn of a loop, begins and ends on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stream: u32,
    /// Events of earlier steps of the same body that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<u32>,
    /// The event that says that it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u32>,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Streams that steps may name.
pub const STREAMS_MAX: u32 = 16;

impl Step {
    pub fn order(&self) -> &Order {
        match self {
            Step::Launch(launch) => &launch.order,
            Step::Copy(copy) => &copy.order,
            Step::Collective(collective) => &collective.order,
            Step::Message(message) => &message.order,
            Step::Loop(repeat) => &repeat.order,
        }
    }

    pub fn order_mut(&mut self) -> &mut Order {
        match self {
            Step::Launch(launch) => &mut launch.order,
            Step::Copy(copy) => &mut copy.order,
            Step::Collective(collective) => &mut collective.order,
            Step::Message(message) => &mut message.order,
            Step::Loop(repeat) => &mut repeat.order,
        }
    }

    /// What it is called.
    pub fn label(&self) -> &str {
        match self {
            Step::Launch(launch) => &launch.label,
            Step::Copy(copy) => &copy.label,
            Step::Collective(collective) => &collective.label,
            Step::Message(message) => &message.label,
            Step::Loop(repeat) => &repeat.label,
        }
    }

    /// Calls `touch` with every buffer that the step reads, and with those that it may write, once
    /// more and true.
    pub fn touches(&self, touch: &mut dyn FnMut(BufferId, bool)) {
        let mut arg = |arg: &Arg, writes: bool| {
            touch(arg.buffer, false);
            if writes {
                touch(arg.buffer, true);
            }
        };
        match self {
            Step::Launch(launch) => {
                for (at, x) in launch.args.iter().enumerate() {
                    arg(x, launch.may_write(at));
                }
            }
            Step::Copy(copy) => {
                arg(&copy.from, false);
                arg(&copy.to, true);
            }
            Step::Collective(c) => {
                arg(&c.from, false);
                arg(&c.to, true);
                for by in c.segments.iter().flat_map(|s| [&s.sent, &s.got]) {
                    arg(by, false);
                }
            }
            Step::Message(m) => arg(&m.at, m.end == crate::End::Recv),
            Step::Loop(repeat) => {
                repeat.left.iter().for_each(|left| arg(left, false));
                repeat.body.iter().for_each(|step| step.touches(touch));
            }
        }
    }
}

/// How many streams steps are on, loops' bodies included.
pub fn n_streams(steps: &[Step]) -> u32 {
    let of = |step: &Step| match step {
        Step::Loop(repeat) => n_streams(&repeat.body).max(1 + repeat.order.stream),
        _ => 1 + step.order().stream,
    };
    steps.iter().map(of).max().unwrap_or(1)
}

/// Which buffers share bytes.
pub struct Storage {
    /// For each buffer those that it shares bytes with, itself first.
    shares: Vec<Vec<u32>>,
}

impl Storage {
    /// Of an entry whose temps have no place yet: each is apart from all others.
    pub fn unplaced(entry: &Entry) -> Storage {
        Storage::new(entry, &|_, _| false)
    }

    /// Of an entry whose temps lie in the arena.
    pub fn placed(entry: &Entry) -> Storage {
        let dims = entry.dims_max();
        let range = |id: u32| {
            let buffer = entry.buffer(BufferId(id));
            let Role::Temp { offset } = buffer.role else { return 0..0 };
            offset..offset.saturating_add(buffer.size_bytes().eval(&dims).max(0) as u64)
        };
        let ranges: Vec<_> = (0..entry.buffers.len() as u32).map(range).collect();
        Storage::new(entry, &|a, b| {
            let (a, b) = (&ranges[a as usize], &ranges[b as usize]);
            a.start < b.end && b.start < a.end
        })
    }

    fn new(entry: &Entry, temps_meet: &dyn Fn(u32, u32) -> bool) -> Storage {
        let n = entry.buffers.len() as u32;
        let one = |a: u32| {
            let root = |b: u32| entry.storage_of(BufferId(b));
            let meet = |b: &u32| *b != a && (root(a) == root(*b) || temps_meet(a, *b));
            std::iter::once(a).chain((0..n).filter(meet)).collect()
        };
        Storage { shares: (0..n).map(one).collect() }
    }

    fn of(&self, buffer: BufferId) -> &[u32] {
        self.shares.get(buffer.0 as usize).map_or(&[], Vec::as_slice)
    }
}

/// What a stream knows to be done: for each stream how many of the body's steps, counted in the
/// order of the body.
type Known = Vec<usize>;

fn learn(known: &mut Known, of: &Known) {
    known.iter_mut().zip(of).for_each(|(a, b)| *a = (*a).max(*b));
}

/// The steps of a body that have run, as seen by those that follow.
struct Body {
    /// By stream.
    known: Vec<Known>,
    /// After each step, what whoever waits for it knows.
    after: Vec<Known>,
    streams: Vec<usize>,
    /// By buffer and stream: one behind the last step that reads it, and that writes it.
    touched: BTreeMap<(u32, usize), [usize; 2]>,
    n_streams: usize,
}

impl Body {
    fn new(n_streams: u32) -> Body {
        let n = n_streams as usize;
        Body {
            known: vec![vec![0; n]; n],
            after: vec![],
            streams: vec![],
            touched: BTreeMap::new(),
            n_streams: n,
        }
    }

    /// For each stream one behind the last step there that `step` must follow.
    fn needs(&self, step: &Step, storage: &Storage) -> Known {
        let mut needs = vec![0; self.n_streams];
        step.touches(&mut |buffer, writes| {
            for other in storage.of(buffer) {
                for (stream, needed) in needs.iter_mut().enumerate() {
                    let Some([read, written]) = self.touched.get(&(*other, stream)) else {
                        continue;
                    };
                    *needed = (*needed).max(*written).max(if writes { *read } else { 0 });
                }
            }
        });
        needs
    }

    /// The step runs, after `waits`, which are steps of the body.
    fn run(&mut self, step: &Step, waits: &[usize]) {
        let (at, stream) = (self.after.len(), step.order().stream as usize);
        for wait in waits {
            let of = self.after[*wait].clone();
            learn(&mut self.known[stream], &of);
        }
        self.known[stream][stream] = at + 1;
        self.after.push(self.known[stream].clone());
        self.streams.push(stream);
        let touched = &mut self.touched;
        step.touches(&mut |buffer, writes| {
            let of = touched.entry((buffer.0, stream)).or_default();
            of[usize::from(writes)] = at + 1;
        });
    }
}

impl Entry {
    /// Gives each step the events it waits for, by the buffers it touches: those that share bytes
    /// by `storage`.
    pub fn order(&mut self, storage: &Storage) {
        let n = n_streams(&self.steps);
        order(&mut self.steps, n, storage);
    }
}

fn order(steps: &mut [Step], n_streams: u32, storage: &Storage) {
    let mut body = Body::new(n_streams);
    let mut waits: Vec<Vec<usize>> = vec![];
    for step in steps.iter_mut() {
        if let Step::Loop(repeat) = step {
            order(&mut repeat.body, n_streams, storage);
        }
        let own = step.order().stream as usize;
        let needs = body.needs(step, storage);
        let known = &body.known[own];
        let unknown = (0..needs.len()).filter(|s| *s != own && needs[*s] > known[*s]);
        let wanted: Vec<usize> = unknown.map(|s| needs[s] - 1).collect();
        // Who waits for a step knows what that has waited for.
        let implied = |w: &usize| {
            let behind = |other: &&usize| *other != w && body.after[**other][body.streams[*w]] > *w;
            wanted.iter().find(behind).is_some()
        };
        let least: Vec<usize> = wanted.iter().copied().filter(|w| !implied(w)).collect();
        body.run(step, &least);
        waits.push(least);
    }
    let mut events: BTreeMap<usize, u32> = BTreeMap::new();
    for of in waits.iter().flatten() {
        let next = events.len() as u32;
        events.entry(*of).or_insert(next);
    }
    for (at, (step, waits)) in steps.iter_mut().zip(waits).enumerate() {
        let order = step.order_mut();
        order.waits = waits.iter().map(|w| events[w]).collect();
        order.signal = events.get(&at).copied();
    }
}

/// Two steps that touch the same bytes with nothing to order them: what is written or read first,
/// and by whom again.
pub fn unordered<'a>(
    steps: &'a [Step],
    n_streams: u32,
    storage: &Storage,
) -> Option<[&'a Step; 2]> {
    let mut body = Body::new(n_streams);
    let mut events: BTreeMap<u32, usize> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        if let Step::Loop(repeat) = step
            && let Some(found) = unordered(&repeat.body, n_streams, storage)
        {
            return Some(found);
        }
        let needs = body.needs(step, storage);
        let order = step.order();
        let waits: Vec<usize> = order.waits.iter().filter_map(|e| events.get(e).copied()).collect();
        body.run(step, &waits);
        let known = &body.known[order.stream as usize];
        let missing = (0..needs.len()).find(|s| needs[*s] > known[*s]);
        if let Some(stream) = missing {
            return Some([&steps[needs[stream] - 1], step]);
        }
        if let Some(event) = order.signal {
            events.insert(event, at);
        }
    }
    None
}

/// For each step of a body one behind the last that may run before it is done: itself, where all
/// that follow it do so on every stream.
pub fn followed_from(steps: &[Step], n_streams: u32) -> Vec<usize> {
    if n_streams == 1 {
        return (1..=steps.len()).collect();
    }
    let mut body = Body::new(n_streams);
    let mut events: BTreeMap<u32, usize> = BTreeMap::new();
    // What each step of a stream knows of the others before it runs; it never forgets.
    let mut seen: Vec<Vec<(usize, Known)>> = vec![vec![]; n_streams as usize];
    for (at, step) in steps.iter().enumerate() {
        let order = step.order();
        let waits: Vec<usize> = order.waits.iter().filter_map(|e| events.get(e).copied()).collect();
        body.run(step, &waits);
        seen[order.stream as usize].push((at, body.after[at].clone()));
        if let Some(event) = order.signal {
            events.insert(event, at);
        }
    }
    let end = |at: usize| {
        let own = body.streams[at];
        let beside = seen.iter().enumerate().filter(|(stream, _)| *stream != own);
        let last = beside.filter_map(|(_, of)| {
            let unaware = of.partition_point(|(_, known)| known[own] <= at);
            unaware.checked_sub(1).map(|i| of[i].0)
        });
        last.fold(at, usize::max) + 1
    };
    (0..steps.len()).map(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, DType, KernelId, Launch, Loop};

    /// A launch on a stream that reads some buffers and writes one.
    fn step(stream: u32, reads: &[u32], writes: u32) -> Step {
        let args = reads.iter().chain([&writes]).map(|b| Arg::whole(BufferId(*b))).collect();
        Step::Launch(Launch {
            writes: Some(vec![reads.len() as u32]),
            order: Order { stream, ..Order::default() },
            ..Launch::new(KernelId(0), args, 1.into(), format!("{writes}"))
        })
    }

    fn entry(steps: Vec<Step>) -> Entry {
        let temp = |i: u64| {
            let role = Role::Temp { offset: 64 * i };
            Buffer::new(format!("b{i}"), DType::U8, vec![64.into()], role)
        };
        let mut entry = Entry { buffers: (0..8).map(temp).collect(), steps, ..Entry::default() };
        let storage = Storage::placed(&entry);
        entry.order(&storage);
        assert!(unordered(&entry.steps, n_streams(&entry.steps), &storage).is_none());
        entry
    }

    fn waits(entry: &Entry) -> Vec<(Vec<u32>, Option<u32>)> {
        entry.steps.iter().map(|s| (s.order().waits.clone(), s.order().signal)).collect()
    }

    #[test]
    fn one_stream_waits_for_nothing() {
        let entry = entry(vec![step(0, &[0], 1), step(0, &[1], 2), step(0, &[2], 1)]);
        assert!(waits(&entry).iter().all(|w| *w == (vec![], None)));
        assert_eq!(followed_from(&entry.steps, 1), [1, 2, 3]);
    }

    /// Two readers of one value run side by side; who needs both waits once.
    #[test]
    fn a_step_waits_for_what_it_reads() {
        let steps = vec![
            step(0, &[0], 1),
            step(0, &[0], 2),
            step(1, &[1], 3),
            step(0, &[1], 4),
            step(0, &[3, 4], 5),
        ];
        let entry = entry(steps);
        let expected = [
            (vec![], Some(0)),
            (vec![], None),
            (vec![0], Some(1)),
            (vec![], None),
            (vec![1], None),
        ];
        assert_eq!(waits(&entry), expected);
        // What the first wrote is known to be there from its reader on; what the third does is not
        // until the last has waited.
        assert_eq!(followed_from(&entry.steps, 2), [1, 3, 4, 4, 5]);
    }

    /// A wait serves all that comes after it, and whoever waits for the waiter.
    #[test]
    fn what_is_known_is_not_waited_for() {
        let steps = vec![
            step(0, &[0], 1),
            step(1, &[1], 2),
            step(1, &[1], 3),
            step(2, &[3], 4),
            step(2, &[1, 2], 5),
            step(0, &[5], 6),
        ];
        let n: usize = waits(&entry(steps)).iter().map(|(waits, _)| waits.len()).sum();
        assert_eq!(n, 3);
    }

    #[test]
    fn what_is_still_read_is_not_overwritten() {
        let entry = entry(vec![step(1, &[0], 1), step(0, &[2], 0)]);
        assert_eq!(waits(&entry), [(vec![], Some(0)), (vec![0], None)]);
    }

    #[test]
    fn temps_in_one_place_are_one_to_a_stream() {
        let mut overlapping = entry(vec![step(1, &[0], 1), step(0, &[2], 3)]);
        assert!(waits(&overlapping)[1].0.is_empty());
        overlapping.buffers[3].role = Role::Temp { offset: 64 };
        let storage = Storage::placed(&overlapping);
        let found = unordered(&overlapping.steps, 2, &storage).expect("they share a place");
        assert_eq!(found.map(Step::label), ["1", "3"]);
        overlapping.order(&storage);
        assert!(unordered(&overlapping.steps, 2, &storage).is_none());
    }

    #[test]
    fn a_missing_wait_is_found() {
        let mut entry = entry(vec![step(0, &[0], 1), step(1, &[1], 2)]);
        entry.steps[1].order_mut().waits.clear();
        let found = unordered(&entry.steps, 2, &Storage::placed(&entry)).expect("it is missing");
        assert_eq!(found.map(Step::label), ["1", "2"]);
    }

    /// To what is around it a loop is a step of stream 0 that does all that its turns do.
    #[test]
    fn a_loop_is_a_step() {
        let body = vec![step(0, &[1], 2), step(1, &[2], 3)];
        let (label, order) = ("l".into(), Order::default());
        let repeat = Loop { count: 3.into(), reverse: false, left: None, body, label, order };
        let entry = entry(vec![step(1, &[0], 1), Step::Loop(repeat), step(1, &[3], 4)]);
        assert_eq!(waits(&entry), [(vec![], Some(0)), (vec![0], Some(1)), (vec![1], None)]);
        let Step::Loop(repeat) = &entry.steps[1] else { unreachable!() };
        assert_eq!(repeat.body[1].order().waits, [0]);
    }
}
