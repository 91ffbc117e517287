//! The line that says how a run goes: in place on a terminal, else a line every few seconds.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::metrics::Record;

/// Without a terminal, a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(3);
/// Tokens per second are averaged over about this many steps.
const SPEED_STEPS: f64 = 8.0;

pub struct Progress {
    bar: Option<ProgressBar>,
    n_steps: u64,
    last_line: Option<Instant>,
    tokens_per_second: Option<f64>,
}

impl Progress {
    pub fn new(first: u64, n_steps: u64) -> Progress {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(n_steps).with_position(first);
            // A template that does not parse leaves the crate's own.
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {msg}  {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, n_steps, last_line: None, tokens_per_second: None }
    }

    /// A step has been done on `tokens` tokens in `time`.
    pub fn step(&mut self, record: &Record, tokens: u64, time: Duration) {
        let now = tokens as f64 / time.as_secs_f64().max(1e-9);
        let before = self.tokens_per_second.unwrap_or(now);
        let speed = before + (now - before) / SPEED_STEPS;
        self.tokens_per_second = Some(speed);
        let line = line(record, self.n_steps, speed);
        match &self.bar {
            Some(bar) => {
                bar.set_position(record.step);
                bar.set_message(line);
            }
            None => {
                let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
                if due || record.step == self.n_steps || record.number("held_out_loss").is_some() {
                    self.last_line = Some(Instant::now());
                    eprintln!("{line}");
                }
            }
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// `step 120/150  loss 2.913  mtp_loss 3.402  1980 tokens/s  lr 3.0e-3  imbalance 0.42`
fn line(record: &Record, n_steps: u64, speed: f64) -> String {
    let mut line = format!("step {}/{n_steps}", record.step);
    let losses = ["loss", "mtp_loss", "held_out_loss"];
    for name in losses {
        if let Some(value) = record.number(name) {
            line += &format!("  {name} {value:.3}");
        }
    }
    line += &format!("  {speed:.0} tokens/s");
    if let Some(lr) = record.number("lr") {
        line += &format!("  lr {lr:.1e}");
    }
    if let Some(layers) = record.layers("max_vio")
        && !layers.is_empty()
    {
        let mean = layers.iter().sum::<f64>() / layers.len() as f64;
        line += &format!("  imbalance {mean:.2}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_losses_speed_rate_and_imbalance() {
        let record = Record::new(3)
            .with("loss", 2.5)
            .with("mtp_loss", 3.0)
            .with("lr", 0.003)
            .with_layers("max_vio", &[0.5, 1.0]);
        let expect =
            "step 3/9  loss 2.500  mtp_loss 3.000  1235 tokens/s  lr 3.0e-3  imbalance 0.75";
        assert_eq!(line(&record, 9, 1234.6), expect);
    }
}
