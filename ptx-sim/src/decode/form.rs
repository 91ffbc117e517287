//! One instruction while it is decoded: modifiers are taken one by one, operands in order, and what
//! is left over at the end is refused by name.

use super::names::Names;
use crate::error::{Error, ErrorKind, Result};
use crate::parse::ast::{Instruction, Operand};
use crate::program::{AddressSpace, Dst, Op, Scope, Src};
use crate::scalar::Ty;

pub struct Form<'a> {
    pub names: &'a Names,
    inst: &'a Instruction,
    mods: Vec<&'a str>,
    at: usize,
    pub dst: Vec<Dst>,
    pub src: Vec<Src>,
}

impl<'a> Form<'a> {
    /// `prefix` is the part of the opcode that chose the row of the table.
    pub fn new(names: &'a Names, inst: &'a Instruction, prefix: &str) -> Self {
        let rest = &inst.opcode[prefix.len()..];
        let mods = rest.split('.').filter(|m| !m.is_empty()).collect();
        Form { names, inst, mods, at: 0, dst: vec![], src: vec![] }
    }

    pub fn finish(&self) -> Result<()> {
        if let Some(left) = self.mods.first() {
            return Err(self.unsupported(&format!("the modifier `.{left}`")));
        }
        match self.inst.operands.len() - self.at {
            0 => Ok(()),
            n => Err(self.unsupported(&format!("{n} more operands than expected"))),
        }
    }

    pub fn unsupported(&self, what: &str) -> Error {
        let message = format!("`{}`: {what} is not supported", self.inst.opcode);
        Error::at(ErrorKind::Unsupported, self.inst.line, message)
    }

    pub fn bad(&self, what: &str) -> Error {
        Error::at(ErrorKind::Syntax, self.inst.line, format!("`{}`: {what}", self.inst.opcode))
    }

    /// The function of this type, or that there is none.
    pub fn known<T>(&self, found: Option<T>, ty: Ty) -> Result<T> {
        found.ok_or_else(|| self.unsupported(&format!("the type {ty:?}")))
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let found = self.mods.iter().position(|m| *m == name);
        found.map(|i| self.mods.remove(i)).is_some()
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        for (i, m) in self.mods.iter().enumerate() {
            if let Some(&(_, value)) = choices.iter().find(|(name, _)| name == m) {
                self.mods.remove(i);
                return Some(value);
            }
        }
        None
    }

    pub fn need<T: Copy>(&mut self, what: &str, choices: &[(&str, T)]) -> Result<T> {
        self.one_of(choices).ok_or_else(|| self.bad(&format!("{what} is missing or unknown")))
    }

    /// The first modifier that `take` accepts.
    pub fn take<T>(&mut self, accept: impl Fn(&str) -> Option<T>) -> Option<T> {
        for (i, m) in self.mods.iter().enumerate() {
            if let Some(value) = accept(m) {
                self.mods.remove(i);
                return Some(value);
            }
        }
        None
    }

    /// The last modifier, a type.
    pub fn ty(&mut self) -> Result<Ty> {
        let found = self.mods.last().and_then(|m| Ty::parse(m));
        if found.is_some() {
            self.mods.pop();
        }
        found.ok_or_else(|| self.bad("the last part is no known type"))
    }

    pub fn scope(&mut self) -> Option<Scope> {
        self.one_of(&[
            ("cta", Scope::Cta),
            ("cluster", Scope::Cluster),
            ("gpu", Scope::Gpu),
            ("sys", Scope::Sys),
        ])
    }

    pub fn space(&mut self) -> Option<AddressSpace> {
        self.one_of(&[
            ("global", AddressSpace::Global),
            ("shared", AddressSpace::SharedCta),
            ("shared::cta", AddressSpace::SharedCta),
            ("shared::cluster", AddressSpace::SharedCluster),
            ("local", AddressSpace::Local),
            ("param", AddressSpace::Param),
            ("param::entry", AddressSpace::Param),
            ("param::func", AddressSpace::Param),
            ("const", AddressSpace::Const),
        ])
    }

    pub fn n_left(&self) -> usize {
        self.inst.operands.len() - self.at
    }

    pub fn peek(&self) -> Option<&'a Operand> {
        self.inst.operands.get(self.at)
    }

    pub fn operand(&mut self) -> Result<&'a Operand> {
        let operand = self.peek().ok_or_else(|| self.bad("an operand is missing"))?;
        self.at += 1;
        Ok(operand)
    }

    pub fn add_dst(&mut self) -> Result<()> {
        let operand = self.operand()?;
        let dst = self.dst_of(operand)?;
        self.dst.push(dst);
        Ok(())
    }

    pub fn add_src(&mut self) -> Result<()> {
        let operand = self.operand()?;
        let src = self.src_of(operand)?;
        self.src.push(src);
        Ok(())
    }

    pub fn add_srcs(&mut self, n: usize) -> Result<()> {
        (0..n).try_for_each(|_| self.add_src())
    }

    /// `[address]`, with one part.
    pub fn add_address(&mut self) -> Result<()> {
        match self.operand()? {
            Operand::Address { parts, offset } if parts.len() == 1 => {
                let src = self.address_of(&parts[0], *offset)?;
                self.src.push(src);
                Ok(())
            }
            _ => Err(self.bad("expected an address in brackets")),
        }
    }

    pub fn dst_of(&self, operand: &Operand) -> Result<Dst> {
        match operand {
            Operand::Sink => Ok(Dst::SINK),
            Operand::Name(name) => match self.names.register(name) {
                Some((register, bits)) => {
                    Ok(Dst { register, mask: u64::MAX >> (64 - u32::from(bits.min(64))) })
                }
                None => Err(self.bad(&format!("`{name}` is not a register"))),
            },
            _ => Err(self.bad("the destination is not a register")),
        }
    }

    pub fn src_of(&self, operand: &Operand) -> Result<Src> {
        match operand {
            Operand::Int(value) => Ok(Src::Imm(*value)),
            Operand::FloatBits(bits) => Ok(Src::Imm(*bits)),
            Operand::Not(name) => match self.names.register(name) {
                Some((register, 1)) => Ok(Src::Not(register)),
                _ => Err(self.bad(&format!("`!{name}` is not a predicate"))),
            },
            Operand::Name(name) => self
                .names
                .value(name)
                .ok_or_else(|| self.bad(&format!("the name `{name}` is unknown"))),
            _ => Err(self.bad("expected a register or a number")),
        }
    }

    pub fn address_of(&self, operand: &Operand, offset: i64) -> Result<Src> {
        Ok(match self.src_of(operand)? {
            Src::Register(register) => Src::Offset(register, offset),
            Src::Imm(value) => Src::Imm(value.wrapping_add(offset as u64)),
            Src::Shared(at) => Src::Shared(at.wrapping_add(offset as u32)),
            _ => return Err(self.bad("the address is neither a register nor a name")),
        })
    }

    /// Registers of `{..}`, or the one register.
    pub fn vector(&mut self) -> Result<Vec<&'a Operand>> {
        Ok(match self.operand()? {
            Operand::Vector(items) => items.iter().collect(),
            single => vec![single],
        })
    }

    pub fn label(&mut self) -> Result<u32> {
        match self.operand()? {
            Operand::Name(name) => self.names.label(name).ok_or_else(|| {
                let message = format!("`{}`: the label `{name}` is unknown", self.inst.opcode);
                Error::at(ErrorKind::Syntax, self.inst.line, message)
            }),
            _ => Err(self.bad("expected a label")),
        }
    }

    pub fn name(&mut self) -> Result<&'a str> {
        match self.operand()? {
            Operand::Name(name) => Ok(name),
            _ => Err(self.bad("expected a name")),
        }
    }

    pub fn is_aligned(&self) -> bool {
        self.inst.opcode.split('.').any(|m| m == "aligned")
    }

    /// A destination and `n` sources.
    pub fn shape(&mut self, op: Op, n: usize) -> Result<Op> {
        self.add_dst()?;
        self.add_srcs(n)?;
        Ok(op)
    }
}
