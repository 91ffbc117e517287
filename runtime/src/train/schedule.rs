//! Numbers that change over a run: learning rate, batch size, bias speed, loss weights.
//!
//! A schedule is a list of phases on two clocks, optimizer steps and tokens, both counted from the
//! start of the run. A phase starts where the phases before it on its own clock end, and it is in
//! force from when all earlier phases are over. So "2,000 steps of warm-up, constant until ten
//! trillion tokens, cosine over four more" is three phases, and the value is a function of (step,
//! tokens) alone: resuming needs no state.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What a phase's length is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Steps,
    Tokens,
}

/// How a phase gets from its first value to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Linear,
    /// Half a period: flat at both ends.
    Cosine,
}

/// One stretch; constant when `from` equals `to`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub from: f64,
    pub to: f64,
    pub shape: Shape,
    /// Length; none only in the last phase, which then has no end.
    pub over: Option<(f64, Unit)>,
}

impl Phase {
    /// `value` for the rest of the run.
    pub fn constant(value: f64) -> Self {
        Self { from: value, to: value, shape: Shape::Linear, over: None }
    }
}

/// Phases in order; after the last, its final value stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Schedule {
    phases: Vec<Phase>,
}

/// The form in files, before its phases were checked.
#[derive(Clone, Serialize, Deserialize)]
struct Unchecked {
    phases: Vec<Phase>,
}

/// Why phases are no schedule.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    #[error("a schedule has no phases: expected at least one value")]
    Empty,
    #[error("phase {phase} of a schedule: expected finite values, found {from} -> {to}")]
    Value { phase: usize, from: f64, to: f64 },
    #[error("phase {phase} of a schedule: expected a length above 0, found {length}")]
    Length { phase: usize, length: f64 },
    #[error("phase {phase} of a schedule has no end: expected that only of the last")]
    Endless { phase: usize },
}

impl Schedule {
    pub fn new(phases: Vec<Phase>) -> Result<Self, ScheduleError> {
        if phases.is_empty() {
            return Err(ScheduleError::Empty);
        }
        for (phase, p) in phases.iter().enumerate() {
            let is_last = phase + 1 == phases.len();
            match p.over {
                _ if !(p.from.is_finite() && p.to.is_finite()) => {
                    return Err(ScheduleError::Value { phase, from: p.from, to: p.to });
                }
                Some((length, _)) if !(length > 0.0 && length.is_finite()) => {
                    return Err(ScheduleError::Length { phase, length });
                }
                None if !is_last => return Err(ScheduleError::Endless { phase }),
                _ => {}
            }
        }
        Ok(Self { phases })
    }

    pub fn constant(value: f64) -> Result<Self, ScheduleError> {
        Self::new(vec![Phase::constant(value)])
    }

    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// The value once `step` steps were done on `tokens` tokens: for the first step, `at(0, 0)`.
    pub fn at(&self, step: u64, tokens: u64) -> f64 {
        let (mut start_steps, mut start_tokens) = (0.0, 0.0);
        let mut last = f64::NAN;
        for phase in &self.phases {
            // An endless phase has no length to move along, so it stands at its last value.
            let Some((length, unit)) = phase.over else { return phase.to };
            let (now, start) = match unit {
                Unit::Steps => (step as f64, &mut start_steps),
                Unit::Tokens => (tokens as f64, &mut start_tokens),
            };
            if now < *start + length {
                return phase.value(((now - *start) / length).max(0.0));
            }
            *start += length;
            last = phase.to;
        }
        last
    }
}

impl Phase {
    /// The value at `t` in [0, 1] of the way.
    fn value(&self, t: f64) -> f64 {
        let share = match self.shape {
            Shape::Linear => t,
            Shape::Cosine => 0.5 - 0.5 * (PI * t).cos(),
        };
        self.from + (self.to - self.from) * share
    }
}

impl TryFrom<Unchecked> for Schedule {
    type Error = ScheduleError;

    fn try_from(unchecked: Unchecked) -> Result<Self, ScheduleError> {
        Self::new(unchecked.phases)
    }
}

impl From<Schedule> for Unchecked {
    fn from(schedule: Schedule) -> Self {
        Self { phases: schedule.phases }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(from: f64, to: f64, shape: Shape, length: f64, unit: Unit) -> Phase {
        Phase { from, to, shape, over: Some((length, unit)) }
    }

    fn check(phases: &[Phase], expected: &[(u64, u64, f64)]) {
        let schedule = Schedule::new(phases.to_vec()).unwrap();
        for &(step, tokens, value) in expected {
            let found = schedule.at(step, tokens);
            assert!((found - value).abs() < 1e-12, "at ({step}, {tokens}): {found}, not {value}");
        }
    }

    #[test]
    fn one_value_is_constant() {
        check(&[Phase::constant(0.3)], &[(0, 0, 0.3), (1 << 40, 1 << 50, 0.3)]);
    }

    #[test]
    fn a_ramp_then_its_last_value() {
        let ramp = phase(0.0, 1.0, Shape::Linear, 10.0, Unit::Steps);
        check(&[ramp], &[(0, 0, 0.0), (5, 0, 0.5), (9, 0, 0.9), (10, 0, 1.0), (99, 0, 1.0)]);
    }

    #[test]
    fn cosine_is_flat_at_both_ends() {
        let cosine = phase(2.0, 0.0, Shape::Cosine, 100.0, Unit::Tokens);
        check(&[cosine], &[(0, 0, 2.0), (0, 50, 1.0), (0, 100, 0.0)]);
        let schedule = Schedule::new(vec![cosine]).unwrap();
        assert!(2.0 - schedule.at(0, 1) < 0.001 && schedule.at(0, 99) < 0.001);
    }

    #[test]
    fn warm_up_in_steps_then_phases_in_tokens() {
        // DeepSeek-V3's learning rate with every length divided by 1e9.
        let phases = [
            phase(0.0, 2.2, Shape::Linear, 20.0, Unit::Steps),
            phase(2.2, 2.2, Shape::Linear, 10_000.0, Unit::Tokens),
            phase(2.2, 0.22, Shape::Cosine, 4_300.0, Unit::Tokens),
            phase(0.22, 0.22, Shape::Linear, 333.0, Unit::Tokens),
            Phase::constant(0.073),
        ];
        let middle = (2.2 + 0.22) / 2.0;
        check(
            &phases,
            &[
                (10, 100, 1.1),
                (20, 200, 2.2),
                (999, 9_999, 2.2),
                (1215, 12_150, middle),
                (1430, 14_300, 0.22),
                (1463, 14_632, 0.22),
                (1464, 14_633, 0.073),
            ],
        );
    }

    #[test]
    fn the_form_in_a_file_comes_back() {
        let schedule = Schedule::new(vec![
            phase(0.0, 1e-3, Shape::Cosine, 7.0, Unit::Tokens),
            Phase::constant(1e-4),
        ])
        .unwrap();
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }

    #[test]
    fn wrong_phases_are_refused() {
        let refuse = |phases: Vec<Phase>| Schedule::new(phases).unwrap_err().to_string();
        assert!(refuse(vec![]).contains("expected at least one value"));
        let endless = refuse(vec![Phase::constant(1.0), Phase::constant(2.0)]);
        assert!(endless.contains("phase 0 of a schedule has no end"), "{endless}");
        for length in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = refuse(vec![phase(0.0, 1.0, Shape::Linear, length, Unit::Steps)]);
            assert!(error.contains("expected a length above 0"), "{error}");
        }
        let value = refuse(vec![Phase::constant(f64::NAN)]);
        assert!(value.contains("expected finite values"), "{value}");
    }
}
