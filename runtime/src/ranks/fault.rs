//! Faults on purpose, for tests: `WEFT_TEST_FAULT=KIND:RANK:N` makes a rank fail when it begins its
//! N-th collective or end of a message, counted from 0. `hang` sleeps for ever, `panic` panics,
//! `lose` closes the rank's transport, `abort` ends the process as a crash does. `swap` changes the
//! rank's program before it begins: its N-th and next collectives of the training step trade
//! places.

use std::time::Duration;

use weft_graph::{Entry, Half, Step};

use super::Communicator;

pub const VARIABLE: &str = "WEFT_TEST_FAULT";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    kind: Kind,
    pub rank: usize,
    /// The collective at which it happens.
    pub at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Hang,
    Panic,
    Lose,
    Abort,
    Swap,
}

impl Fault {
    /// The fault that the environment asks for.
    pub fn from_env() -> Result<Option<Fault>, String> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(None) };
        let why = || {
            format!("{VARIABLE}={text}: expected KIND:RANK:N with hang, panic, lose, abort or swap")
        };
        let parts: Vec<&str> = text.split(':').collect();
        let &[kind, rank, at] = &parts[..] else { return Err(why()) };
        let kind = match kind {
            "hang" => Kind::Hang,
            "panic" => Kind::Panic,
            "lose" => Kind::Lose,
            "abort" => Kind::Abort,
            "swap" => Kind::Swap,
            _ => return Err(why()),
        };
        let rank = rank.parse().map_err(|_| why())?;
        let at = at.parse().map_err(|_| why())?;
        Ok(Some(Fault { kind, rank, at }))
    }

    /// The program of `rank` with its fault in it.
    pub fn seed(&self, rank: usize, entry: &mut Entry) {
        if self.kind != Kind::Swap || self.rank != rank {
            return;
        }
        let mut steps = vec![];
        collectives(&mut entry.steps, &mut steps);
        let half = |step: &Step| match step {
            Step::Collective(c) => c.half,
            _ => None,
        };
        let begins = (0..steps.len()).filter(|i| !matches!(half(steps[*i]), Some(Half::Done(_))));
        let pair: Vec<usize> = begins.skip(self.at as usize).take(2).collect();
        let &[a, b] = &pair[..] else { return };
        // What is begun elsewhere is done elsewhere.
        let done = |i: usize| {
            let flight = half(steps[i])?.flight();
            steps.iter().position(|s| half(s) == Some(Half::Done(flight)))
        };
        let ends = done(a).zip(done(b));
        for (i, j) in std::iter::once((a, b)).chain(ends) {
            let (first, rest) = steps.split_at_mut(i.max(j));
            std::mem::swap(&mut *first[i.min(j)], &mut *rest[0]);
        }
    }

    pub(super) fn happen(&self, comm: &dyn Communicator) {
        match self.kind {
            Kind::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Kind::Panic => panic!("asked for by {VARIABLE}"),
            Kind::Lose => comm.close("it has lost its transport"),
            Kind::Abort => std::process::abort(),
            Kind::Swap => {}
        }
    }
}

/// In order, those of loops once.
fn collectives<'a>(steps: &'a mut [Step], found: &mut Vec<&'a mut Step>) {
    for step in steps {
        match step {
            Step::Collective(_) => found.push(step),
            Step::Loop(repeat) => collectives(&mut repeat.body, found),
            Step::Launch(_) | Step::Copy(_) | Step::Message(_) => {}
        }
    }
}
