//! Attributes: what an op is told at compile time. Their names and kinds stand in the op's row; the
//! text form, the parser and the verifier read them from there.

use crate::dim::Dim;
use crate::module::FuncId;
use crate::ty::{AxisId, DType, Type};

/// The kind an attribute has in an op's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttrKind {
    Int,
    Float,
    Bool,
    /// One of the listed words.
    Word(&'static [&'static str]),
    /// Any name, held as a word.
    Name,
    Ints,
    Dim,
    Dims,
    DType,
    Type,
    Func,
    /// A mesh axis.
    Axis,
}

/// An attribute's value.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    Int(i64),
    Float(f64),
    Bool(bool),
    Word(String),
    Ints(Vec<i64>),
    Dim(Dim),
    Dims(Vec<Dim>),
    DType(DType),
    Type(Type),
    Func(FuncId),
    Axis(AxisId),
}

impl Attr {
    pub fn fits(&self, kind: AttrKind) -> bool {
        match (self, kind) {
            (Attr::Int(_), AttrKind::Int)
            | (Attr::Float(_), AttrKind::Float)
            | (Attr::Bool(_), AttrKind::Bool)
            | (Attr::Ints(_), AttrKind::Ints)
            | (Attr::Dim(_), AttrKind::Dim)
            | (Attr::Dims(_), AttrKind::Dims)
            | (Attr::DType(_), AttrKind::DType)
            | (Attr::Type(_), AttrKind::Type)
            | (Attr::Func(_), AttrKind::Func)
            | (Attr::Axis(_), AttrKind::Axis) => true,
            (Attr::Word(w), AttrKind::Word(words)) => words.contains(&w.as_str()),
            (Attr::Word(_), AttrKind::Name) => true,
            _ => false,
        }
    }
}

/// An op's attributes, in the order of its row.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attrs(Vec<(&'static str, Attr)>);

impl Attrs {
    pub fn new() -> Attrs {
        Attrs::default()
    }

    /// The attributes with `name` set (replaced if it was there).
    pub fn with(mut self, name: &'static str, value: Attr) -> Attrs {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
        self
    }

    /// These, then those of `other`.
    pub fn and(self, other: Attrs) -> Attrs {
        other.0.into_iter().fold(self, |attrs, (name, value)| attrs.with(name, value))
    }

    pub fn int(self, name: &'static str, v: i64) -> Attrs {
        self.with(name, Attr::Int(v))
    }

    pub fn float(self, name: &'static str, v: f64) -> Attrs {
        self.with(name, Attr::Float(v))
    }

    pub fn flag(self, name: &'static str, v: bool) -> Attrs {
        self.with(name, Attr::Bool(v))
    }

    pub fn word(self, name: &'static str, v: &str) -> Attrs {
        self.with(name, Attr::Word(v.to_string()))
    }

    pub fn ints(self, name: &'static str, v: impl Into<Vec<i64>>) -> Attrs {
        self.with(name, Attr::Ints(v.into()))
    }

    pub fn dims(self, name: &'static str, v: impl Into<Vec<Dim>>) -> Attrs {
        self.with(name, Attr::Dims(v.into()))
    }

    pub fn func(self, name: &'static str, v: FuncId) -> Attrs {
        self.with(name, Attr::Func(v))
    }

    pub fn axis(self, name: &'static str, v: AxisId) -> Attrs {
        self.with(name, Attr::Axis(v))
    }

    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Attr)> {
        self.0.iter().map(|(n, v)| (*n, v))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Attr)> {
        self.0.iter_mut().map(|(n, v)| (*n, v))
    }

    pub fn get_int(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Attr::Int(v)) => Some(*v),
            _ => None,
        }
    }

    pub fn get_float(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            Some(Attr::Float(v)) => Some(*v),
            _ => None,
        }
    }

    /// An absent flag is false.
    pub fn get_flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Attr::Bool(true)))
    }

    pub fn get_word(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Attr::Word(v)) => Some(v),
            _ => None,
        }
    }

    pub fn get_ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(Attr::Ints(v)) => Some(v),
            _ => None,
        }
    }

    pub fn get_dim(&self, name: &str) -> Option<Dim> {
        match self.get(name) {
            Some(Attr::Dim(v)) => Some(*v),
            _ => None,
        }
    }

    pub fn get_dims(&self, name: &str) -> Option<&[Dim]> {
        match self.get(name) {
            Some(Attr::Dims(v)) => Some(v),
            _ => None,
        }
    }

    pub fn get_dtype(&self, name: &str) -> Option<DType> {
        match self.get(name) {
            Some(Attr::DType(v)) => Some(*v),
            _ => None,
        }
    }

    pub fn get_type(&self, name: &str) -> Option<&Type> {
        match self.get(name) {
            Some(Attr::Type(v)) => Some(v),
            _ => None,
        }
    }

    pub fn get_axis(&self, name: &str) -> Option<AxisId> {
        match self.get(name) {
            Some(Attr::Axis(v)) => Some(*v),
            _ => None,
        }
    }

    pub fn get_func(&self, name: &str) -> Option<FuncId> {
        match self.get(name) {
            Some(Attr::Func(v)) => Some(*v),
            _ => None,
        }
    }
}
