//! Where temps lie in the arena, from when they are live.
//!
//! A temp is live from the first step that touches it to the last, counted along the flattened
//! steps. A temp made outside a loop and touched inside it is live through the whole loop: the next
//! turn may need it. One made inside is live within a turn, and every turn uses the same place. A
//! launch that reads each element of a temp just before it writes the same element of another may
//! have both in one place, if the first is not needed after. Where steps are on several streams, a
//! temp is live until every step that follows knows that its last touch is done.
//!
//! Placement is first fit, large temps first: with activations of a few sizes little is lost, and
//! it does not depend on names.

use std::collections::BTreeMap;

use weft_graph::order::{followed_from, n_streams};
use weft_graph::{BufferId, Step};

/// Offsets are multiples of this.
const ALIGN: u64 = 64;

/// A temp to be placed.
#[derive(Clone, Debug)]
pub struct Temp {
    pub buffer: BufferId,
    /// With every dim at its bound.
    pub size_bytes: u64,
    /// The loops it was made in, outermost first, numbered in the order in which they begin.
    pub scope: Vec<u32>,
}

/// What is read and overwritten in place by the launch at hand, if nothing needs it after.
#[derive(Clone, Copy, Debug)]
pub struct InPlace {
    pub read: BufferId,
    pub written: BufferId,
}

/// A placed temp. Those with a common `group` share one place on purpose.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub buffer: BufferId,
    pub offset: u64,
    pub size_bytes: u64,
    /// The first step that touches it, and the last that may run before its last touch is done.
    pub first: u32,
    pub last: u32,
    pub group: u32,
}

/// The placed temps, in the order of `temps`, and the size of the arena. Temps that no step touches
/// lie at its start.
pub fn plan(steps: &[Step], temps: &[Temp], in_place: &[InPlace]) -> (Vec<Placed>, u64) {
    let mut walk = Walk { n_streams: n_streams(steps), ..Walk::default() };
    walk.steps(steps);
    let lives: Vec<Option<Life>> = temps.iter().map(|t| lifetime(t, &walk)).collect();
    let mut live = lives.iter().map(|l| l.map(|l| (l.first, l.last))).collect::<Vec<_>>();
    let group = share(temps, in_place, &lives, &mut live);

    let mut order: Vec<usize> =
        (0..temps.len()).filter(|i| group[*i] == *i && live[*i].is_some()).collect();
    let size = |i: usize| temps[i].size_bytes.next_multiple_of(ALIGN);
    order.sort_by_key(|i| (std::cmp::Reverse(size(*i)), live[*i], *i));
    let mut offsets = vec![0u64; temps.len()];
    let mut placed: Vec<usize> = vec![];
    let mut arena_bytes = 0;
    for i in order {
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .filter(|j| overlap(live[i], live[**j]))
            .map(|j| (offsets[*j], offsets[*j] + size(*j)))
            .collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if at + size(i) <= start {
                break;
            }
            at = at.max(end);
        }
        offsets[i] = at;
        arena_bytes = arena_bytes.max(at + size(i));
        placed.push(i);
    }
    let placed = (0..temps.len()).map(|i| {
        let (first, last) = live[group[i]].unwrap_or((0, 0));
        Placed {
            buffer: temps[i].buffer,
            offset: offsets[group[i]],
            size_bytes: temps[i].size_bytes,
            first,
            last,
            group: group[i] as u32,
        }
    });
    (placed.collect(), arena_bytes)
}

/// The first two temps of different groups that lie in one place at one time.
pub fn collision(placed: &[Placed]) -> Option<(&Placed, &Placed)> {
    let pairs =
        placed.iter().enumerate().flat_map(|(i, a)| placed[i + 1..].iter().map(move |b| (a, b)));
    pairs.into_iter().find(|(a, b)| {
        a.group != b.group
            && overlap(Some((a.first, a.last)), Some((b.first, b.last)))
            && a.offset < b.offset + b.size_bytes
            && b.offset < a.offset + a.size_bytes
    })
}

fn overlap(a: Option<(u32, u32)>, b: Option<(u32, u32)>) -> bool {
    a.zip(b).is_some_and(|(a, b)| a.0 <= b.1 && b.0 <= a.1)
}

/// A touch of a buffer: the step, the last that may run before it is done, the loops around it.
struct Touch {
    at: u32,
    until: u32,
    path: Vec<u32>,
}

/// Every touch of every buffer.
#[derive(Default)]
struct Walk {
    n_streams: u32,
    touches: BTreeMap<BufferId, Vec<Touch>>,
    /// First step of each loop, and the last that may run before it is done.
    loops: Vec<(u32, u32)>,
    open: Vec<u32>,
    /// The last step that may run before the open loops are done, where one behind them may.
    beside: u32,
    at: u32,
}

impl Walk {
    fn steps(&mut self, steps: &[Step]) {
        let mut starts = vec![self.at];
        for step in steps {
            starts.push(starts[starts.len() - 1] + n_leaves(step));
        }
        let ends = followed_from(steps, self.n_streams).into_iter().map(|end| starts[end]);
        for (step, end) in steps.iter().zip(ends) {
            let until = end.saturating_sub(1).max(self.at).max(self.beside);
            if let Step::Loop(repeat) = step {
                let id = self.loops.len() as u32;
                self.loops.push((self.at, until));
                self.open.push(id);
                let own = (self.at + n_leaves(step)).saturating_sub(1);
                let outer = self.beside;
                if until > own {
                    self.beside = until;
                }
                if let Some(left) = &repeat.left {
                    let touch = Touch { at: self.at, until, path: self.open.clone() };
                    self.touches.entry(left.buffer).or_default().push(touch);
                }
                self.steps(&repeat.body);
                self.beside = outer;
                self.open.pop();
                continue;
            }
            step.touches(&mut |buffer, _| {
                let touch = Touch { at: self.at, until, path: self.open.clone() };
                self.touches.entry(buffer).or_default().push(touch);
            });
            self.at += 1;
        }
    }
}

/// Steps that are no loops.
fn n_leaves(step: &Step) -> u32 {
    match step {
        Step::Loop(repeat) => repeat.body.iter().map(n_leaves).sum(),
        _ => 1,
    }
}

/// When a temp is live.
#[derive(Clone, Copy)]
struct Life {
    first: u32,
    last: u32,
    /// The last step that touches it, if all others that do are done then: that step may overwrite
    /// it.
    ended: Option<u32>,
}

fn lifetime(temp: &Temp, walk: &Walk) -> Option<Life> {
    let touches = walk.touches.get(&temp.buffer)?;
    // What is touched inside of a loop that it was not made in is needed by the loop's next turn.
    let ranges = touches.iter().map(|t| match t.path.get(temp.scope.len()) {
        Some(inner) => {
            let (first, until) = walk.loops[*inner as usize];
            (first, until, None)
        }
        None => (t.at, t.until, Some(t.at)),
    });
    let ranges: Vec<(u32, u32, Option<u32>)> = ranges.collect();
    let first = ranges.iter().map(|r| r.0).min()?;
    let last = ranges.iter().map(|r| r.1).max()?;
    let end = ranges.iter().map(|r| r.2.unwrap_or(r.1)).max()?;
    let others = ranges.iter().filter(|r| r.2 != Some(end));
    let ended = ranges.iter().any(|r| r.2 == Some(end)) && others.clone().all(|r| r.1 < end);
    Some(Life { first, last, ended: ended.then_some(end) })
}

/// Joins temps that may share a place; each temp's group, named by its first member, whose lifetime
/// covers all.
fn share(
    temps: &[Temp],
    in_place: &[InPlace],
    lives: &[Option<Life>],
    live: &mut [Option<(u32, u32)>],
) -> Vec<usize> {
    let mut ended: Vec<Option<u32>> = lives.iter().map(|l| l.and_then(|l| l.ended)).collect();
    let of: BTreeMap<BufferId, usize> =
        temps.iter().enumerate().map(|(i, t)| (t.buffer, i)).collect();
    let mut group: Vec<usize> = (0..temps.len()).collect();
    for InPlace { read, written } in in_place {
        let (Some(&a), Some(&b)) = (of.get(read), of.get(written)) else { continue };
        let (a_group, b_group) = (group[a], group[b]);
        let (Some(a_live), Some(b_live)) = (live[a_group], live[b_group]) else { continue };
        let fits = temps[a].size_bytes == temps[b].size_bytes && temps[a].scope == temps[b].scope;
        // The one dies in the step in which the other is born.
        if a_group != b_group && fits && ended[a_group] == Some(b_live.0) {
            group.iter_mut().filter(|g| **g == b_group).for_each(|g| *g = a_group);
            live[a_group] = Some((a_live.0, a_live.1.max(b_live.1)));
            ended[a_group] = ended[b_group];
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_graph::{Arg, KernelId, Launch, Loop, Order};

    fn launch(buffers: &[u32]) -> Step {
        let args = buffers.iter().map(|b| Arg::whole(BufferId(*b))).collect();
        Step::Launch(Launch::new(KernelId(0), args, 1.into(), "k"))
    }

    fn repeat(body: Vec<Step>) -> Step {
        let (label, order) = ("l".into(), Order::default());
        Step::Loop(Loop { count: 3.into(), reverse: false, left: None, body, label, order })
    }

    fn temp(buffer: u32, size_bytes: u64, scope: &[u32]) -> Temp {
        Temp { buffer: BufferId(buffer), size_bytes, scope: scope.to_vec() }
    }

    fn check(steps: &[Step], temps: &[Temp], in_place: &[InPlace]) -> (Vec<u64>, u64) {
        let (placed, arena_bytes) = plan(steps, temps, in_place);
        assert_eq!(collision(&placed), None);
        (placed.iter().map(|p| p.offset).collect(), arena_bytes)
    }

    #[test]
    fn a_place_is_used_again() {
        let steps = [launch(&[0, 1]), launch(&[1, 2]), launch(&[2, 3])];
        let temps = [temp(0, 64, &[]), temp(1, 100, &[]), temp(2, 60, &[]), temp(3, 1, &[])];
        assert_eq!(check(&steps, &temps, &[]), (vec![128, 0, 128, 0], 192));
    }

    #[test]
    fn what_a_loop_reads_from_outside_lives_through_it() {
        let steps = [launch(&[0]), repeat(vec![launch(&[0, 1]), launch(&[1, 2])]), launch(&[3])];
        let temps = [temp(0, 64, &[]), temp(1, 64, &[0]), temp(2, 64, &[0]), temp(3, 64, &[])];
        assert_eq!(check(&steps, &temps, &[]), (vec![0, 64, 128, 0], 192));
    }

    #[test]
    fn a_stack_written_in_a_loop_is_not_overwritten_by_its_turns() {
        // Buffer 0 is a stack: made outside, written late in the body. Buffer 1 is dead by then, in
        // this turn.
        let steps = [repeat(vec![launch(&[1]), launch(&[0])]), launch(&[0])];
        let temps = [temp(0, 64, &[]), temp(1, 64, &[0])];
        assert_eq!(check(&steps, &temps, &[]).1, 128);
    }

    #[test]
    fn overwriting_shares_a_place_unless_the_old_value_is_needed() {
        let in_place = [InPlace { read: BufferId(0), written: BufferId(1) }];
        let temps = [temp(0, 64, &[]), temp(1, 64, &[])];
        let once = [launch(&[0]), launch(&[0, 1]), launch(&[1])];
        assert_eq!(check(&once, &temps, &in_place), (vec![0, 0], 64));
        let again = [launch(&[0]), launch(&[0, 1]), launch(&[0, 1])];
        assert_eq!(check(&again, &temps, &in_place), (vec![0, 64], 128));
    }

    /// A launch of another stream may still read the first temp when the second is written, until
    /// someone has waited for it.
    #[test]
    fn a_place_is_not_used_again_beside_its_reader() {
        let mut reader = launch(&[0, 3]);
        *reader.order_mut() = Order { stream: 1, waits: vec![0], signal: Some(1) };
        let mut maker = launch(&[0]);
        maker.order_mut().signal = Some(0);
        let mut waits = launch(&[1]);
        let temps = [temp(0, 64, &[]), temp(1, 64, &[])];
        let beside = [maker.clone(), reader.clone(), waits.clone()];
        assert_eq!(check(&beside, &temps, &[]).1, 128);
        waits.order_mut().waits = vec![1];
        assert_eq!(check(&[maker, reader, waits], &temps, &[]).1, 64);
    }

    /// A launch behind a loop, on another stream, runs beside what the loop's turns keep.
    #[test]
    fn what_a_loop_keeps_is_not_overwritten_beside_it() {
        let steps = |stream| {
            let mut behind = launch(&[1]);
            behind.order_mut().stream = stream;
            [repeat(vec![launch(&[0]), launch(&[0])]), behind]
        };
        let temps = [temp(0, 64, &[0]), temp(1, 64, &[])];
        assert_eq!(check(&steps(0), &temps, &[]).1, 64);
        assert_eq!(check(&steps(2), &temps, &[]).1, 128);
    }
}
