//! Where temps lie in the arena, from when they are live.
//!
//! A temp is live from the first step that touches it to the last, counted along the flattened
//! steps. A temp made outside a loop and touched inside it is live through the whole loop: the next
//! turn may need it. One made inside is live within a turn, and every turn uses the same place. A
//! launch that reads each element of a temp just before it writes the same element of another may
//! have both in one place, if the first is not needed after.
//!
//! Placement is first fit, large temps first: with activations of a few sizes little is lost, and
//! it does not depend on names.

use std::collections::BTreeMap;

use weft_graph::{Arg, BufferId, Step};

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
    /// First and last step that touches it.
    pub first: u32,
    pub last: u32,
    pub group: u32,
}

/// The placed temps, in the order of `temps`, and the size of the arena. Temps that no step touches
/// lie at its start.
pub fn plan(steps: &[Step], temps: &[Temp], in_place: &[InPlace]) -> (Vec<Placed>, u64) {
    let mut walk = Walk::default();
    walk.steps(steps);
    let mut live: Vec<Option<(u32, u32)>> = temps.iter().map(|t| lifetime(t, &walk)).collect();
    let group = share(temps, in_place, &mut live);

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

/// Every touch of every buffer: the step's place and the loops around it.
#[derive(Default)]
struct Walk {
    touches: BTreeMap<BufferId, Vec<(u32, Vec<u32>)>>,
    /// First and last step of each loop.
    loops: Vec<(u32, u32)>,
    open: Vec<u32>,
    at: u32,
}

impl Walk {
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Launch(launch) => self.touch(&launch.args.iter().collect::<Vec<_>>()),
                Step::Copy(copy) => self.touch(&[&copy.from, &copy.to]),
                Step::Collective(c) => {
                    let offsets = c.segments.iter().flat_map(|s| [&s.sent, &s.got]);
                    self.touch(&[&c.from, &c.to].into_iter().chain(offsets).collect::<Vec<_>>());
                }
                Step::Message(m) => self.touch(&[&m.at]),
                Step::Loop(repeat) => {
                    let id = self.loops.len() as u32;
                    self.loops.push((self.at, self.at));
                    self.open.push(id);
                    if let Some(left) = &repeat.left {
                        self.touch(&[left]);
                    }
                    self.steps(&repeat.body);
                    self.open.pop();
                    self.loops[id as usize].1 = self.at.saturating_sub(1);
                }
            }
        }
    }

    fn touch(&mut self, args: &[&Arg]) {
        for arg in args {
            let touches = self.touches.entry(arg.buffer).or_default();
            touches.push((self.at, self.open.clone()));
        }
        self.at += 1;
    }
}

fn lifetime(temp: &Temp, walk: &Walk) -> Option<(u32, u32)> {
    let touches = walk.touches.get(&temp.buffer)?;
    let ranges = touches.iter().map(|(at, path)| match path.get(temp.scope.len()) {
        Some(inner) => walk.loops[*inner as usize],
        None => (*at, *at),
    });
    ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// Joins temps that may share a place; each temp's group, named by its first member, whose lifetime
/// covers all.
fn share(temps: &[Temp], in_place: &[InPlace], live: &mut [Option<(u32, u32)>]) -> Vec<usize> {
    let of: BTreeMap<BufferId, usize> =
        temps.iter().enumerate().map(|(i, t)| (t.buffer, i)).collect();
    let mut group: Vec<usize> = (0..temps.len()).collect();
    for InPlace { read, written } in in_place {
        let (Some(&a), Some(&b)) = (of.get(read), of.get(written)) else { continue };
        let (a_group, b_group) = (group[a], group[b]);
        let (Some(a_live), Some(b_live)) = (live[a_group], live[b_group]) else { continue };
        let fits = temps[a].size_bytes == temps[b].size_bytes && temps[a].scope == temps[b].scope;
        // The one dies in the step in which the other is born.
        if a_group != b_group && fits && a_live.1 == b_live.0 {
            group.iter_mut().filter(|g| **g == b_group).for_each(|g| *g = a_group);
            live[a_group] = Some((a_live.0, b_live.1));
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_graph::{KernelId, Launch, Loop};

    fn launch(buffers: &[u32]) -> Step {
        let args = buffers.iter().map(|b| Arg::whole(BufferId(*b))).collect();
        Step::Launch(Launch::new(KernelId(0), args, 1.into(), "k"))
    }

    fn repeat(body: Vec<Step>) -> Step {
        Step::Loop(Loop { count: 3.into(), reverse: false, left: None, body, label: "l".into() })
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
}
