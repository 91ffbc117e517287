//! From the tree of a module to kernels that run: names become registers and addresses, opcodes
//! become rows of [`isa::PRIMITIVES`](crate::isa::PRIMITIVES).

pub mod arith;
pub mod control;
pub mod form;
pub mod hopper;
pub mod memory;
pub mod names;
pub mod sync;

use crate::error::{Error, ErrorKind, Result, SourceLine};
use crate::isa;
use crate::memory::{LOCAL_BASE, MODULE_BASE, PARAM_BASE, SHARED_MAX_BYTES, SHARED_START};
use crate::parse::ast::{self, Instruction, Operand, Space, Statement};
use crate::program::{Call, Guard, Inst, Kernel, Op, Param, Slot};
use form::Form;
use names::{FrameSlot, Meaning, Names};
use std::collections::HashMap;

/// Bytes of the module's global and constant variables, with their addresses from the module's
/// start.
pub struct Image {
    pub address: u64,
    pub bytes: Vec<u8>,
}

pub fn image(module: &ast::Module, id: u64) -> (Image, HashMap<String, u64>) {
    let address = MODULE_BASE + (id << 32);
    let mut bytes: Vec<u8> = vec![];
    let mut addresses = HashMap::new();
    for variable in &module.globals {
        if matches!(variable.space, Space::Global | Space::Const) {
            let at = (bytes.len() as u64).next_multiple_of(variable.align_bytes.max(16));
            bytes.resize((at + variable.size_bytes) as usize, 0);
            bytes[at as usize..][..variable.init.len()].copy_from_slice(&variable.init);
            addresses.insert(variable.name.clone(), address + at);
        }
    }
    (Image { address, bytes }, addresses)
}

/// Decodes an entry and every function it may call.
pub fn kernel(
    module: &ast::Module,
    entry: &ast::Function,
    globals: &HashMap<String, u64>,
) -> Result<Kernel> {
    let mut linker = Linker::new(module, entry, globals.clone());
    linker.shared_variables(&module.globals);
    linker.params(entry)?;
    let mut next = 0;
    linker.want(&entry.name);
    while next < linker.wanted.len() {
        let index = linker.wanted[next];
        linker.function(&module.functions[index])?;
        next += 1;
    }
    linker.link()?;
    let kernel = &linker.kernel;
    let shared_bytes = kernel.static_shared_end - SHARED_START;
    if kernel.local_bytes > 512 << 10 || kernel.n_registers > 1 << 16 {
        let (n, frame) = (kernel.n_registers, kernel.local_bytes);
        let message = format!("{}: {n} registers and a frame of {frame} bytes", entry.name);
        return Err(Error::at(ErrorKind::Unsupported, entry.line, message));
    }
    if shared_bytes > SHARED_MAX_BYTES {
        let message = format!("{}: {shared_bytes} bytes of static shared memory", entry.name);
        return Err(Error::at(ErrorKind::Unsupported, entry.line, message));
    }
    linker.place_dynamic();
    Ok(linker.kernel)
}

struct Linker<'a> {
    module: &'a ast::Module,
    kernel: Kernel,
    names: Names,
    wanted: Vec<usize>,
    starts: HashMap<String, u32>,
    /// Parameters of device functions, in order, results first.
    callee_slots: HashMap<String, (Vec<FrameSlot>, Vec<FrameSlot>)>,
    /// Calls whose target has no address yet.
    pending: Vec<(usize, String)>,
    opcodes: HashMap<String, u32>,
    n_scopes: u32,
    /// Names of dynamic shared memory, and their alignment.
    dynamic_align: u32,
}

impl<'a> Linker<'a> {
    fn new(module: &'a ast::Module, entry: &ast::Function, globals: HashMap<String, u64>) -> Self {
        let kernel = Kernel {
            name: entry.name.clone(),
            code: vec![],
            n_registers: 0,
            params: vec![],
            params_bytes: 0,
            local_bytes: 0,
            static_shared_end: SHARED_START,
            uses_dynamic_shared: false,
            required_block: entry.required_block,
            max_threads: entry.max_threads,
            required_cluster: entry.required_cluster,
            opcodes: vec![],
            sources: vec![],
            calls: vec![],
        };
        let names = Names::new(globals);
        Linker {
            module,
            kernel,
            names,
            wanted: vec![],
            starts: HashMap::new(),
            callee_slots: HashMap::new(),
            pending: vec![],
            opcodes: HashMap::new(),
            n_scopes: 0,
            dynamic_align: 1,
        }
    }

    /// Static variables first; dynamic memory begins after all of them, known before decoding.
    fn shared_variables(&mut self, globals: &[ast::Variable]) {
        let of_functions = self.module.functions.iter().flat_map(|f| &f.body);
        let of_functions = of_functions.filter_map(|s| match s {
            Statement::Variable(v) => Some(v),
            _ => None,
        });
        let all: Vec<&ast::Variable> =
            globals.iter().chain(of_functions).filter(|v| v.space == Space::Shared).collect();
        for variable in all.iter().filter(|v| v.size_bytes > 0) {
            let at =
                self.kernel.static_shared_end.next_multiple_of(variable.align_bytes.max(1) as u32);
            self.kernel.static_shared_end = at + variable.size_bytes as u32;
            self.names.shared.insert(variable.name.clone(), at);
        }
        for variable in all.iter().filter(|v| v.size_bytes == 0) {
            self.dynamic_align = self.dynamic_align.max(variable.align_bytes as u32);
        }
        let start = self.kernel.static_shared_end.next_multiple_of(self.dynamic_align);
        for variable in all.iter().filter(|v| v.size_bytes == 0) {
            self.names.shared.insert(variable.name.clone(), start);
            self.kernel.uses_dynamic_shared = true;
        }
    }

    fn place_dynamic(&mut self) {
        let end = self.kernel.static_shared_end;
        self.kernel.static_shared_end = end.next_multiple_of(self.dynamic_align);
    }

    fn params(&mut self, entry: &ast::Function) -> Result<()> {
        for param in &entry.params {
            let offset = self.kernel.params_bytes.next_multiple_of(param.align_bytes.max(1));
            self.kernel.params_bytes = offset + param.size_bytes;
            let (name, size_bytes) = (param.name.clone(), param.size_bytes);
            self.names.globals.insert(name.clone(), PARAM_BASE + offset);
            self.kernel.params.push(Param { name, offset, size_bytes });
        }
        Ok(())
    }

    fn want(&mut self, name: &str) -> bool {
        let Some(index) = self.module.functions.iter().position(|f| f.name == name) else {
            return false;
        };
        if !self.wanted.contains(&index) {
            self.wanted.push(index);
        }
        true
    }

    /// A place in every thread's frame.
    fn frame(&mut self, size_bytes: u64, align_bytes: u64) -> FrameSlot {
        let offset = self.kernel.local_bytes.next_multiple_of(align_bytes.max(1));
        self.kernel.local_bytes = offset + size_bytes;
        FrameSlot { offset, size_bytes }
    }

    fn frame_variable(&mut self, variable: &ast::Variable) -> FrameSlot {
        let slot = self.frame(variable.size_bytes, variable.align_bytes);
        self.names.define(&variable.name, Meaning::Address(LOCAL_BASE + slot.offset));
        self.names.frame.insert(variable.name.clone(), slot);
        slot
    }

    fn function(&mut self, function: &ast::Function) -> Result<()> {
        let start = self.kernel.code.len() as u32;
        self.starts.insert(function.name.clone(), start);
        self.labels(&function.body, start);
        let first_scope = self.n_scopes;
        self.names.open(first_scope);
        self.n_scopes += 1;
        if !function.is_entry {
            let results = function.results.iter().map(|v| self.frame_variable(v)).collect();
            let params = function.params.iter().map(|v| self.frame_variable(v)).collect();
            self.callee_slots.insert(function.name.clone(), (results, params));
        }
        for statement in &function.body {
            match statement {
                Statement::ScopeOpen => {
                    self.names.open(self.n_scopes);
                    self.n_scopes += 1;
                }
                Statement::ScopeClose => self.names.close(),
                Statement::Registers { bits, names } => {
                    for name in names {
                        let register = self.kernel.n_registers;
                        self.kernel.n_registers += 1;
                        self.names.define(name, Meaning::Register { register, bits: *bits });
                    }
                }
                Statement::Variable(variable) => match variable.space {
                    Space::Local | Space::Param => drop(self.frame_variable(variable)),
                    Space::Shared => {}
                    _ => {
                        let message = format!("`{}` in a function body", variable.name);
                        return Err(Error::at(ErrorKind::Unsupported, variable.line, message));
                    }
                },
                Statement::Label(_) | Statement::BranchTargets { .. } => {}
                Statement::Instruction(inst) => self.instruction(inst)?,
            }
        }
        self.names.close();
        // A function without a last `ret` must not run into the next one.
        let end = Inst {
            op: Op::Exit,
            guard: None,
            dst: Box::default(),
            src: Box::default(),
            aligned: false,
            line: function.line,
            source: None,
            opcode: self.opcode("exit"),
            primitive: isa::find("exit").map_or(0, |(row, _)| row),
        };
        self.kernel.code.push(end);
        Ok(())
    }

    /// Where each label of the function stands, scope by scope, before anything jumps.
    fn labels(&mut self, body: &[Statement], start: u32) {
        let (mut at, mut n_scopes) = (start, self.n_scopes + 1);
        let mut open = vec![self.n_scopes];
        for statement in body {
            match statement {
                Statement::ScopeOpen => {
                    open.push(n_scopes);
                    n_scopes += 1;
                }
                Statement::ScopeClose => drop(open.pop()),
                Statement::Label(name) => {
                    let scope = open.last().copied().unwrap_or(0);
                    self.names.define_label(scope, name, at);
                }
                Statement::BranchTargets { name, labels } => {
                    self.names.branch_targets.insert(name.clone(), labels.clone());
                }
                Statement::Instruction(_) => at += 1,
                _ => {}
            }
        }
    }

    fn opcode(&mut self, text: &str) -> u32 {
        if let Some(&index) = self.opcodes.get(text) {
            return index;
        }
        let index = self.kernel.opcodes.len() as u32;
        self.kernel.opcodes.push(text.to_string());
        self.opcodes.insert(text.to_string(), index);
        index
    }

    fn source(&mut self, source: &Option<SourceLine>) -> Option<u32> {
        let source = source.as_ref()?;
        if self.kernel.sources.last() != Some(source) {
            self.kernel.sources.push(source.clone());
        }
        Some(self.kernel.sources.len() as u32 - 1)
    }

    fn instruction(&mut self, inst: &Instruction) -> Result<()> {
        let located = |mut e: Error| {
            e.source_line = inst.source.clone();
            e.or_line(inst.line)
        };
        let (primitive, row) = isa::find(&inst.opcode).ok_or_else(|| {
            let message = format!("the opcode `{}` is not supported", inst.opcode);
            located(Error::at(ErrorKind::Unsupported, inst.line, message))
        })?;
        let guard = match &inst.guard {
            None => None,
            Some((name, negated)) => match self.names.register(name) {
                Some((register, 1)) => Some(Guard { register, negated: *negated }),
                _ => {
                    let message = format!("the guard `{name}` is not a predicate");
                    return Err(located(Error::at(ErrorKind::Syntax, inst.line, message)));
                }
            },
        };
        let (op, dst, src, aligned) = if row.name == "call" {
            (self.call(inst).map_err(located)?, vec![], vec![], false)
        } else {
            let mut form = Form::new(&self.names, inst, row.name);
            let aligned = form.is_aligned() || row.converges;
            let op = (row.decode)(&mut form).map_err(located)?;
            form.finish().map_err(located)?;
            (op, form.dst, form.src, aligned)
        };
        let opcode = self.opcode(&inst.opcode);
        let source = self.source(&inst.source);
        self.kernel.code.push(Inst {
            op,
            guard,
            dst: dst.into(),
            src: src.into(),
            aligned,
            line: inst.line,
            source,
            opcode,
            primitive,
        });
        Ok(())
    }

    /// `call.uni (result), function, (arguments);`
    fn call(&mut self, inst: &Instruction) -> Result<Op> {
        let bad = |what: &str| Error::at(ErrorKind::Syntax, inst.line, format!("`call`: {what}"));
        let (mut results, mut arguments, mut target) = (vec![], vec![], None);
        for operand in &inst.operands {
            match operand {
                Operand::List(items) if target.is_none() => results = items.clone(),
                Operand::List(items) => arguments = items.clone(),
                Operand::Name(name) if target.is_none() => target = Some(name.clone()),
                _ => {
                    let message = "an indirect `call` is not supported";
                    return Err(Error::at(ErrorKind::Unsupported, inst.line, message));
                }
            }
        }
        let target = target.ok_or_else(|| bad("no function"))?;
        if !self.want(&target) {
            let message = format!("`call`: the function `{target}` has no body in this module");
            return Err(Error::at(ErrorKind::Unsupported, inst.line, message));
        }
        let slots = |items: &[Operand]| -> Result<Vec<Slot>> {
            let slot = |item: &Operand| match item {
                Operand::Name(name) => self.names.frame.get(name).copied(),
                _ => None,
            };
            let slot = |item| slot(item).ok_or_else(|| bad("an argument is not a `.param`"));
            let one = |item| {
                let FrameSlot { offset, size_bytes } = slot(item)?;
                Ok(Slot { from: offset, to: offset, size_bytes })
            };
            items.iter().map(one).collect()
        };
        let call = Call { target: 0, arguments: slots(&arguments)?, results: slots(&results)? };
        self.kernel.calls.push(call);
        let index = self.kernel.calls.len() - 1;
        self.pending.push((index, target));
        Ok(Op::Call(index as u32))
    }

    /// Gives calls their targets and joins arguments with parameters.
    fn link(&mut self) -> Result<()> {
        for (index, name) in std::mem::take(&mut self.pending) {
            let call = &mut self.kernel.calls[index];
            call.target = self.starts[&name];
            let (results, params) = &self.callee_slots[&name];
            if results.len() != call.results.len() || params.len() != call.arguments.len() {
                let message = format!("`call`: `{name}` takes another number of arguments");
                return Err(Error::new(ErrorKind::Syntax, message));
            }
            let pairs = call.arguments.iter().zip(params).chain(call.results.iter().zip(results));
            if pairs.clone().any(|(slot, formal)| slot.size_bytes != formal.size_bytes) {
                let message = format!("`call`: `{name}` takes arguments of other sizes");
                return Err(Error::new(ErrorKind::Syntax, message));
            }
            for (slot, param) in call.arguments.iter_mut().zip(params) {
                slot.to = param.offset;
            }
            for (slot, result) in call.results.iter_mut().zip(results) {
                slot.from = result.offset;
            }
        }
        Ok(())
    }
}
