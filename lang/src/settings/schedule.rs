//! Numbers that change over a run, as a block writes them.

use serde::Serialize;

use super::keys::Keys;
use crate::ast::{self, EntryValue, PhaseShape};

/// What a phase's length is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Steps,
    Tokens,
}

/// How a phase gets from its first value to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Linear,
    Cosine,
}

/// One stretch; constant when `from` equals `to`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Phase {
    pub from: f64,
    pub to: f64,
    pub shape: Shape,
    /// Length; none in the last phase: it has no end.
    pub over: Option<(f64, Unit)>,
}

/// Phases in order, at least one; the last value stays.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Schedule {
    pub phases: Vec<Phase>,
}

impl Schedule {
    pub fn constant(value: f64) -> Schedule {
        let shape = Shape::Linear;
        Schedule { phases: vec![Phase { from: value, to: value, shape, over: None }] }
    }

    /// The value, if it never changes.
    pub fn as_constant(&self) -> Option<f64> {
        let first = self.phases.first()?.from;
        self.phases.iter().all(|p| p.from == first && p.to == first).then_some(first)
    }

    /// Every value that a phase starts or ends with.
    pub fn ends(&self) -> impl Iterator<Item = f64> {
        self.phases.iter().flat_map(|p| [p.from, p.to])
    }
}

/// The schedule of an entry: a number, or phases. `None` if something was wrong, which has been
/// said.
pub fn of_entry(keys: &mut Keys, entry: &ast::Entry) -> Option<Schedule> {
    match &entry.value {
        EntryValue::Expr(e) => {
            keys.number(e, &entry.key.text, "a number or a schedule").map(Schedule::constant)
        }
        EntryValue::Schedule(all) => {
            let phases: Vec<Option<Phase>> = all.iter().map(|p| phase(keys, entry, p)).collect();
            Some(Schedule { phases: phases.into_iter().collect::<Option<_>>()? })
        }
        EntryValue::Nested { .. } => keys.nested(entry, "a number or a schedule"),
    }
}

fn phase(keys: &mut Keys, entry: &ast::Entry, p: &ast::Phase) -> Option<Phase> {
    let key = entry.key.text.as_str();
    let (shape, from, to) = match &p.shape {
        PhaseShape::Hold(v) => (Shape::Linear, v, v),
        PhaseShape::Linear { from, to } => (Shape::Linear, from, to),
        PhaseShape::Cosine { from, to } => (Shape::Cosine, from, to),
    };
    let (from, to) = (keys.number(from, key, "a number"), keys.number(to, key, "a number"));
    let over = match &p.over {
        None => None,
        Some(extent) => {
            let length = keys.number(&extent.length, key, "a number")?;
            if length <= 0.0 {
                let why = format!("`{key}`: a phase is longer than 0, found {length}");
                return keys.error(extent.span, why);
            }
            let unit = match extent.unit {
                ast::Unit::Steps => Unit::Steps,
                ast::Unit::Tokens => Unit::Tokens,
            };
            Some((length, unit))
        }
    };
    Some(Phase { from: from?, to: to?, shape, over })
}
