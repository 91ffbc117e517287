//! Two streams of a GPU: compute, and exchanges with other ranks.
//!
//! Each keeps its order; a task starts when its stream is free and what it needs is done. Peers
//! come to an exchange some time after this rank: a *wait* from when its rows are ready. Where the
//! stream was not free before, that time has passed, wholly or in part; so an exchange that nothing
//! delays takes its wait, and exchanges in a row, which keep all ranks together, only what they
//! move:
//!
//! ```text
//! ready, stream free             ready, stream busy
//! |-- wait --|-- rows --|        |== other rows ==|-- rows --|
//! ```

/// An exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Transfer {
    pub seconds: f64,
    /// Until the last peer is ready, from when this rank is.
    pub wait: f64,
}

impl Transfer {
    /// On a stream that was free.
    pub fn span(&self) -> f64 {
        self.wait + self.seconds
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

/// Tasks in order, when they ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Streams {
    pub tasks: Vec<Task>,
    /// When compute is free, and exchanges are.
    free: [f64; 2],
}

impl Streams {
    pub fn seconds(&self) -> f64 {
        self.free[0].max(self.free[1])
    }

    /// Adds compute of so many seconds behind all of its stream, `after` what it needs; returns
    /// when it ends. What takes no time is no task.
    pub fn compute(&mut self, name: &'static str, layer: usize, seconds: f64, after: f64) -> f64 {
        if seconds == 0.0 {
            return after;
        }
        let start = self.free[0].max(after);
        self.put(Task { name, layer, exchange: false, start, end: start + seconds })
    }

    /// The same of an exchange.
    pub fn exchange(&mut self, name: &'static str, layer: usize, t: Transfer, after: f64) -> f64 {
        if t.seconds == 0.0 {
            return after;
        }
        let free = self.free[1];
        let end = free.max(after + t.wait) + t.seconds;
        self.put(Task { name, layer, exchange: true, start: free.max(after), end })
    }

    fn put(&mut self, task: Task) -> f64 {
        let end = task.end;
        self.free[usize::from(task.exchange)] = end;
        self.tasks.push(task);
        end
    }

    fn of(&self, exchange: bool) -> impl Iterator<Item = &Task> {
        self.tasks.iter().filter(move |t| t.exchange == exchange)
    }

    /// Seconds that the exchange stream is busy, waits included, and those of them under compute.
    pub fn covered(&self) -> (f64, f64) {
        let (mut busy, mut covered) = (0.0, 0.0);
        let mut compute = self.of(false).peekable();
        for e in self.of(true) {
            busy += e.end - e.start;
            // The last that lies under this exchange may lie under the next.
            while let Some(c) = compute.peek().filter(|c| c.start < e.end) {
                covered += (e.end.min(c.end) - e.start.max(c.start)).max(0.0);
                if c.end > e.end {
                    break;
                }
                compute.next();
            }
        }
        (busy, covered)
    }

    /// Seconds that the compute stream is busy.
    pub fn computing(&self) -> f64 {
        self.of(false).map(|t| t.end - t.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITED: Transfer = Transfer { seconds: 2.0, wait: 3.0 };

    #[test]
    fn a_peer_is_waited_for_once() {
        let mut s = Streams::default();
        assert_eq!(s.exchange("first", 0, WAITED, 1.0), 6.0);
        // Its peers were ready at 4 and at 8; the stream is free at 6.
        assert_eq!(s.exchange("behind it", 0, WAITED, 1.0), 8.0);
        assert_eq!(s.exchange("ready later", 0, WAITED, 7.0), 12.0);
        assert_eq!(s.tasks[2].start, 8.0);
    }

    #[test]
    fn what_lies_under_compute_is_counted_once() {
        let mut s = Streams::default();
        s.compute("a", 0, 4.0, 0.0);
        s.compute("b", 0, 4.0, 6.0);
        let plain = |seconds| Transfer { seconds, wait: 0.0 };
        s.exchange("x", 0, plain(1.0), 1.0);
        s.exchange("y", 0, plain(5.0), 3.0);
        s.exchange("z", 0, plain(4.0), 0.0);
        // 1-2 whole; 3-8 under 3-4 and 6-8; 8-12 under 8-10.
        assert_eq!(s.covered(), (10.0, 1.0 + 3.0 + 2.0));
        assert_eq!((s.computing(), s.seconds()), (8.0, 12.0));
    }
}
