//! What ranks do together and hand each other: steps of their own, on row-major values.

use weft_graph::{Collective, CollectiveKind, End, Group, Half, Message, Order, Segments, Step};
use weft_ir::module::{Func, OpData, ValueId};
use weft_ir::op::Op;

use super::{Fault, Frame, Lower, dims, streams, view};

/// The result of the op that takes what is in flight.
fn done_by(func: &Func, flight: ValueId) -> Option<ValueId> {
    let mut ops = func.body_ops().map(|(_, op)| op);
    let done = ops.find(|op| op.op == Op::Done && op.operands.contains(&flight))?;
    done.results.first().copied()
}

impl<'a> Lower<'a> {
    /// The ranks along the axis that an op names.
    fn group(&self, op: &OpData) -> Result<Group, Fault> {
        let id = op.attrs.get_axis("axis").ok_or("names no mesh axis")?;
        let axis = self.module.axes.get(id.0 as usize).ok_or("names no mesh axis of the module")?;
        let sizes = (u32::try_from(axis.size), u32::try_from(self.module.stride(id)));
        let (Ok(size), Ok(stride)) = sizes else { return Err("the mesh is too large".into()) };
        Ok(Group { axis: axis.name.clone(), size, stride })
    }

    pub(super) fn message(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let group = self.group(op)?;
        let (end, peer, x) = match op.op {
            Op::Send => (End::Send, "to", op.operands[0]),
            _ => (End::Recv, "from", op.results[0]),
        };
        let peer = op.attrs.get_int(peer).and_then(|p| u32::try_from(p).ok());
        let at = match end {
            End::Send => self.plain(f, x)?,
            End::Recv => self.result_room(f, x)?,
        };
        let ty = f.func.ty(x);
        let bytes = view::size_bytes(&self.dims, &ty.dims, ty.dtype);
        self.push(Step::Message(Message {
            end,
            group,
            peer: peer.ok_or("names no rank")?,
            at,
            bytes,
            label: f.names[x.0 as usize].trim_start_matches('%').to_string(),
            source: self.places(op),
            order: self.own_stream(op),
        }));
        Ok(())
    }

    /// The stream of what ranks send each other, where the machine has one beside that of compute.
    fn own_stream(&self, op: &OpData) -> Order {
        let comm = op.attrs.get_word("stream") == Some("comm") && self.backend.streams().is_some();
        Order { stream: if comm { streams::TRANSFERS } else { 0 }, ..Order::default() }
    }

    pub(super) fn collective(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let whole = op.op.started().unwrap_or(op.op);
        let kind = match whole {
            Op::AllReduce => CollectiveKind::AllReduce,
            Op::ReduceScatter => CollectiveKind::ReduceScatter,
            Op::Part => CollectiveKind::Part,
            Op::ExchangeOffsets => CollectiveKind::ExchangeOffsets,
            Op::Exchange if op.attrs.get_flag("back") => CollectiveKind::ExchangeBack,
            Op::Exchange => CollectiveKind::Exchange,
            _ => CollectiveKind::AllGather,
        };
        let group = self.group(op)?;
        let x = op.operands[0];
        // What a half begins is the result of the op that ends it, whose place is taken now.
        let y = match op.op.started() {
            Some(_) => done_by(f.func, op.results[0]).ok_or("is never done")?,
            None => op.results[0],
        };
        let from = self.plain(f, x)?;
        let segments = self.segments(f, op)?;
        let to = self.result_room(f, y)?;
        let ty = f.func.ty(x);
        // A sum for all has no dim: it is one block. Rows are blocks.
        let at = match whole {
            Op::Exchange => 1,
            _ => op.attrs.get_int("dim").unwrap_or(0) as usize,
        };
        let product = |d| weft_graph::DimExpr::product(self.dims.exprs(d));
        let (outer, block) = (product(&ty.dims[..at]), product(&ty.dims[at..]));
        let name = f.names[y.0 as usize].trim_start_matches('%').to_string();
        let mut step = Collective {
            half: None,
            kind,
            group,
            from,
            to,
            segments,
            room: op.attrs.get_dim("room").map(|d| self.dims.expr(d)),
            outer,
            block,
            dtype: dims::dtype(ty.dtype),
            label: name,
            source: self.places(op),
            order: self.own_stream(op),
        };
        if op.op.started().is_some() {
            let sms = op.attrs.get_int("sms").and_then(|n| u32::try_from(n).ok());
            self.carry(self.n_flights, Some(sms.unwrap_or(0)));
            step.half = Some(Half::Start(self.n_flights));
            self.n_flights += 1;
            f.flights.insert(op.results[0], step.clone());
        }
        self.push(Step::Collective(step));
        Ok(())
    }

    /// The second half; it names what the first does, so that all of it is in use until then.
    pub(super) fn done(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let begun = f.flights.remove(&op.operands[0]).ok_or("waits for what nothing begins")?;
        let half = begun.half.map(|half| Half::Done(half.flight()));
        let order = self.own_stream(op);
        half.iter().for_each(|half| self.carry(half.flight(), None));
        self.push(Step::Collective(Collective { half, order, ..begun }));
        Ok(())
    }

    /// The offsets by which rows are sent.
    fn segments(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<Option<Segments>, Fault> {
        let &[_, sent, got] = &op.operands[..] else { return Ok(None) };
        let n = f.func.ty(sent).dims[0].as_fixed().unwrap_or(1).saturating_sub(1);
        let n = u32::try_from(n).map_err(|_| "there are too many experts")?;
        Ok(Some(Segments { n, sent: self.plain(f, sent)?, got: self.plain(f, got)? }))
    }
}
