//! Statements and operands of a function body, scoped blocks of inline assembly included.

use super::ast::{Instruction, Operand, Statement};
use super::lex::Token;
use super::{Parser, space_of, type_bits};
use crate::error::{Result, SourceLine};

impl Parser<'_> {
    pub(super) fn body(&mut self) -> Result<Vec<Statement>> {
        self.expect('{')?;
        let mut out = vec![];
        let mut depth = 1;
        let mut source: Option<SourceLine> = None;
        while depth > 0 {
            if self.eat('{') {
                depth += 1;
                out.push(Statement::ScopeOpen);
                continue;
            }
            if self.eat('}') {
                depth -= 1;
                if depth > 0 {
                    out.push(Statement::ScopeClose);
                }
                continue;
            }
            if self.eat(';') {
                continue;
            }
            if self.is('@') {
                out.push(self.instruction(&source)?);
                continue;
            }
            match self.word()? {
                ".loc" => source = self.loc()?,
                ".file" => self.file()?,
                ".pragma" => {
                    self.text()?;
                    self.expect(';')?;
                }
                ".reg" => out.push(self.registers()?),
                space @ (".local" | ".shared" | ".param" | ".global" | ".const") => {
                    let variable = self.variable(space_of(space))?;
                    self.expect(';')?;
                    out.push(Statement::Variable(variable));
                }
                word if word.starts_with('.') => {
                    return Err(self.unsupported(&format!("the directive `{word}`")));
                }
                word if self.is(':') => {
                    let name = word.to_string();
                    self.expect(':')?;
                    if matches!(self.peek(), Some(Token::Word(".branchtargets"))) {
                        out.push(self.branch_targets(name)?);
                    } else {
                        out.push(Statement::Label(name));
                    }
                }
                _ => {
                    self.at -= 1;
                    out.push(self.instruction(&source)?);
                }
            }
        }
        Ok(out)
    }

    /// `.loc FILE LINE COLUMN`, with an inlining chain that is not kept.
    fn loc(&mut self) -> Result<Option<SourceLine>> {
        let file = self.int()? as u32;
        let line = self.int()? as u32;
        self.int()?;
        while self.eat(',') {
            self.word()?;
            while matches!(self.peek(), Some(Token::Int(_) | Token::Punct('+')))
                || matches!(self.peek(), Some(Token::Word(w)) if w.starts_with("$L__info"))
            {
                self.at += 1;
            }
        }
        let name = self.files.get(&file).cloned();
        Ok(name.filter(|_| line > 0).map(|file| SourceLine { file, line }))
    }

    fn registers(&mut self) -> Result<Statement> {
        let ty = self.word()?;
        let bits = type_bits(ty.trim_start_matches('.'))
            .ok_or_else(|| self.unsupported(&format!("the register type `{ty}`")))?;
        let mut names = vec![];
        loop {
            let name = self.word()?;
            if self.eat('<') {
                let n = self.int()?;
                if !(0..=1 << 14).contains(&n) {
                    return Err(self.unsupported(&format!("{n} registers of one name")));
                }
                names.extend((0..n).map(|i| format!("{name}{i}")));
                self.expect('>')?;
            } else {
                names.push(name.to_string());
            }
            if !self.eat(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(Statement::Registers { bits, names })
    }

    fn branch_targets(&mut self, name: String) -> Result<Statement> {
        self.word()?;
        let mut labels = vec![self.word()?.to_string()];
        while self.eat(',') {
            labels.push(self.word()?.to_string());
        }
        self.expect(';')?;
        Ok(Statement::BranchTargets { name, labels })
    }

    fn instruction(&mut self, source: &Option<SourceLine>) -> Result<Statement> {
        let line = self.line();
        let mut guard = None;
        if self.eat('@') {
            let negated = self.eat('!');
            guard = Some((self.word()?.to_string(), negated));
        }
        let opcode = self.word()?.to_string();
        let mut operands = vec![];
        while !self.eat(';') {
            operands.push(self.operand()?);
            if !self.eat(',') {
                self.expect(';')?;
                break;
            }
        }
        Ok(Statement::Instruction(Instruction {
            line,
            source: source.clone(),
            guard,
            opcode,
            operands,
        }))
    }

    fn operand(&mut self) -> Result<Operand> {
        if self.eat('!') {
            return Ok(Operand::Not(self.word()?.to_string()));
        }
        if self.eat('{') {
            return Ok(Operand::Vector(self.operands_until('}')?));
        }
        if self.eat('(') {
            return Ok(Operand::List(self.operands_until(')')?));
        }
        if self.eat('[') {
            return self.address();
        }
        let first = match self.peek() {
            Some(&Token::Int(value)) => {
                self.at += 1;
                return Ok(Operand::Int(value as u64));
            }
            Some(&Token::FloatBits(bits)) => {
                self.at += 1;
                return Ok(Operand::FloatBits(bits));
            }
            _ => match self.word()? {
                "_" => Operand::Sink,
                name => Operand::Name(name.to_string()),
            },
        };
        if self.eat('|') {
            let second = self.operand()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn operands_until(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut out = vec![];
        while !self.eat(close) {
            out.push(self.operand()?);
            if !self.eat(',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(out)
    }

    fn address(&mut self) -> Result<Operand> {
        let mut parts = vec![self.operand()?];
        let mut offset = 0;
        if self.eat('+') {
            offset = self.int()? as i64;
        } else if let Some(&Token::Int(value)) = self.peek() {
            // `[%rd1-8]`: the minus belongs to the number.
            self.at += 1;
            offset = value as i64;
        }
        while self.eat(',') {
            parts.push(self.operand()?);
        }
        self.expect(']')?;
        Ok(Operand::Address { parts, offset })
    }
}
