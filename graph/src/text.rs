//! The text form of an entry, for dumps: dims, buffers, then one line per step.
//!
//! ```text
//! entry train_step(B <= 8, S <= 256), arena 1048576 bytes
//!   input   tokens: i64[B, S]
//!   weight  mlp.up: f32[7, 512, 256] as model.layers.{i}.mlp.up_proj.weight from [1]
//!   loop layers, 7 times {
//!     layers.mlp.up_proj = gemm_f32(mlp.x, mlp.up[524288*i0]; S, 256), grid 4*B
//!   }
//! ```

use crate::{
    Arg, Buffer, DimDecl, DimExpr, End, Entry, Factor, Graph, Launch, Order, Role, Scalar, Step,
    Term,
};
use std::fmt;

impl Graph {
    /// The text of one entry.
    pub fn display<'a>(&'a self, entry: &'a Entry) -> impl fmt::Display + 'a {
        EntryText { graph: self, entry, steps: true }
    }

    /// The text of one entry without its steps.
    pub fn display_buffers<'a>(&'a self, entry: &'a Entry) -> impl fmt::Display + 'a {
        EntryText { graph: self, entry, steps: false }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, entry) in self.entries.iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.display(entry))?;
        }
        Ok(())
    }
}

impl DimExpr {
    /// The expression with the names of `dims`.
    pub fn display<'a>(&'a self, dims: &'a [DimDecl]) -> impl fmt::Display + 'a {
        DimText { expr: self, dims }
    }
}

struct EntryText<'a> {
    graph: &'a Graph,
    entry: &'a Entry,
    steps: bool,
}

impl fmt::Display for EntryText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.entry;
        let dims: Vec<String> =
            entry.dims.iter().map(|dim| format!("{} <= {}", dim.name, dim.max)).collect();
        let (name, arena_bytes) = (&entry.name, entry.arena_bytes);
        writeln!(f, "entry {name}({}), arena {arena_bytes} bytes", dims.join(", "))?;
        for buffer in &entry.buffers {
            self.buffer(f, buffer)?;
        }
        if self.steps { self.steps(f, &entry.steps, 0) } else { Ok(()) }
    }
}

impl EntryText<'_> {
    fn buffer(&self, f: &mut fmt::Formatter<'_>, buffer: &Buffer) -> fmt::Result {
        write!(f, "  {:<8} {}: {}", buffer.role.name(), buffer.name, buffer.dtype)?;
        write!(f, "[{}]", self.exprs(&buffer.dims))?;
        match buffer.role {
            Role::Temp { offset } => write!(f, " at {offset}")?,
            Role::Constant(id) => write!(f, " bytes {}", id.0)?,
            Role::Input | Role::Output | Role::Weight | Role::State => {}
        }
        if let Some(state) = buffer.alias {
            write!(f, " in place of {}", self.entry.buffer(state).name)?;
        }
        if let Some(weight) = &buffer.weight {
            write!(f, " as {}", weight.template)?;
            if !weight.starts.is_empty() {
                write!(f, " from {:?}", weight.starts)?;
            }
        }
        writeln!(f)
    }

    fn steps(&self, f: &mut fmt::Formatter<'_>, steps: &[Step], depth: usize) -> fmt::Result {
        let indent = 2 * (depth + 1);
        for step in steps {
            write!(f, "{:indent$}", "")?;
            match step {
                Step::Launch(launch) => self.launch(f, launch)?,
                Step::Copy(copy) => {
                    let (to, from) = (self.arg(&copy.to), self.arg(&copy.from));
                    let bytes = copy.bytes.display(&self.entry.dims);
                    write!(f, "{} = copy({to} <- {from}), bytes {bytes}", copy.label)?;
                    self.end(f, &copy.order)?;
                }
                Step::Collective(c) => {
                    let (to, from) = (self.arg(&c.to), self.arg(&c.from));
                    let (name, axis, size) = (c.kind.name(), &c.group.axis, c.group.size);
                    let by = c.segments.as_ref();
                    let by = by.map(|s| format!(", {} to {}", self.arg(&s.sent), self.arg(&s.got)));
                    let by = by.unwrap_or_default();
                    write!(f, "{} = {name}({to} <- {from}{by}) over {axis} = {size}", c.label)?;
                    self.end(f, &c.order)?;
                }
                Step::Message(m) => {
                    let (at, peer, axis) = (self.arg(&m.at), m.peer, &m.group.axis);
                    let bytes = m.bytes.display(&self.entry.dims);
                    match m.end {
                        End::Send => write!(f, "send({at}) to {peer} of {axis}, bytes {bytes}")?,
                        End::Recv => {
                            let label = &m.label;
                            write!(f, "{label} = recv({at}) from {peer} of {axis}, bytes {bytes}")?;
                        }
                    }
                    self.end(f, &m.order)?;
                }
                Step::Loop(repeat) => {
                    let count = repeat.count.display(&self.entry.dims);
                    let order = if repeat.reverse { ", last to first" } else { "" };
                    let left = repeat.left.as_ref().map(|at| format!(", while {}", self.arg(at)));
                    let left = left.unwrap_or_default();
                    write!(f, "loop {}, {count} times{order}{left}", repeat.label)?;
                    self.order(f, &repeat.order)?;
                    writeln!(f, " {{")?;
                    self.steps(f, &repeat.body, depth + 1)?;
                    writeln!(f, "{:indent$}}}", "")?;
                }
            }
        }
        Ok(())
    }

    fn launch(&self, f: &mut fmt::Formatter<'_>, launch: &Launch) -> fmt::Result {
        let args: Vec<String> = launch.args.iter().map(|arg| self.arg(arg)).collect();
        let kernel = &self.graph.kernel(launch.kernel).name;
        write!(f, "{} = {kernel}({}", launch.label, args.join(", "))?;
        if !launch.scalars.is_empty() {
            let scalars: Vec<String> = launch.scalars.iter().map(|s| self.scalar(s)).collect();
            write!(f, "; {}", scalars.join(", "))?;
        }
        write!(f, "), grid {}", launch.grid.display(&self.entry.dims))?;
        if let Some(sms) = launch.sms {
            write!(f, " on {sms}")?;
        }
        self.order(f, &launch.order)?;
        if !launch.source.is_empty() {
            write!(f, "  // {}", launch.source.join(", "))?;
        }
        writeln!(f)
    }

    fn end(&self, f: &mut fmt::Formatter<'_>, order: &Order) -> fmt::Result {
        self.order(f, order)?;
        writeln!(f)
    }

    /// Where it is not that of the step before: `, stream 1, after 0 3, event 4`.
    fn order(&self, f: &mut fmt::Formatter<'_>, order: &Order) -> fmt::Result {
        if order.stream > 0 {
            write!(f, ", stream {}", order.stream)?;
        }
        if !order.waits.is_empty() {
            let waits: Vec<String> = order.waits.iter().map(u32::to_string).collect();
            write!(f, ", after {}", waits.join(" "))?;
        }
        order.signal.map_or(Ok(()), |event| write!(f, ", event {event}"))
    }

    fn arg(&self, arg: &Arg) -> String {
        let name = &self.entry.buffer(arg.buffer).name;
        let mut places = Vec::new();
        if arg.byte_offset != DimExpr::zero() {
            places.push(arg.byte_offset.display(&self.entry.dims).to_string());
        }
        for stride in &arg.strides {
            let bytes = stride.bytes.display(&self.entry.dims).to_string();
            let bytes = if bytes.contains(" + ") { format!("({bytes})") } else { bytes };
            places.push(format!("{bytes}*i{}", stride.loop_depth));
        }
        if places.is_empty() { name.clone() } else { format!("{name}[{}]", places.join(" + ")) }
    }

    fn scalar(&self, scalar: &Scalar) -> String {
        match scalar {
            Scalar::Dim(expr) => expr.display(&self.entry.dims).to_string(),
            Scalar::F32(bits) => format!("{:?}f", f32::from_bits(*bits)),
            Scalar::LoopIndex(depth) => format!("i{depth}"),
        }
    }

    fn exprs(&self, exprs: &[DimExpr]) -> String {
        let texts: Vec<String> =
            exprs.iter().map(|expr| expr.display(&self.entry.dims).to_string()).collect();
        texts.join(", ")
    }
}

struct DimText<'a> {
    expr: &'a DimExpr,
    dims: &'a [DimDecl],
}

impl fmt::Display for DimText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.expr.terms().is_empty() {
            return f.write_str("0");
        }
        for (position, term) in self.expr.terms().iter().enumerate() {
            if position > 0 {
                f.write_str(" + ")?;
            }
            self.term(f, term)?;
        }
        Ok(())
    }
}

impl DimText<'_> {
    fn term(&self, f: &mut fmt::Formatter<'_>, term: &Term) -> fmt::Result {
        if term.coeff != 1 || term.factors.is_empty() {
            write!(f, "{}", term.coeff)?;
        }
        for (position, factor) in term.factors.iter().enumerate() {
            if position > 0 || term.coeff != 1 {
                f.write_str("*")?;
            }
            match factor {
                Factor::Dim(id) => match self.dims.get(id.0 as usize) {
                    Some(dim) => f.write_str(&dim.name)?,
                    None => write!(f, "d{}", id.0)?,
                },
                Factor::CeilDiv { of, by } if of.terms().len() > 1 => {
                    write!(f, "ceil(({}) / {by})", of.display(self.dims))?;
                }
                Factor::CeilDiv { of, by } => write!(f, "ceil({} / {by})", of.display(self.dims))?,
            }
        }
        Ok(())
    }
}
