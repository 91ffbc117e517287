//! What ranks do together and hand each other: steps of their own, on row-major values.

use weft_graph::{Collective, CollectiveKind, End, Group, Message, Segments, Step};
use weft_ir::module::OpData;
use weft_ir::op::Op;

use super::{Fault, Frame, Lower, dims, view};

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
        }));
        Ok(())
    }

    pub(super) fn collective(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let kind = match op.op {
            Op::AllReduce => CollectiveKind::AllReduce,
            Op::ReduceScatter => CollectiveKind::ReduceScatter,
            Op::Part => CollectiveKind::Part,
            Op::ExchangeOffsets => CollectiveKind::ExchangeOffsets,
            Op::Exchange if op.attrs.get_flag("back") => CollectiveKind::ExchangeBack,
            Op::Exchange => CollectiveKind::Exchange,
            _ => CollectiveKind::AllGather,
        };
        let group = self.group(op)?;
        let (x, y) = (op.operands[0], op.results[0]);
        let from = self.plain(f, x)?;
        let segments = self.segments(f, op)?;
        let to = self.result_room(f, y)?;
        let ty = f.func.ty(x);
        // A sum for all has no dim: it is one block. Rows are blocks.
        let at = match op.op {
            Op::Exchange => 1,
            _ => op.attrs.get_int("dim").unwrap_or(0) as usize,
        };
        let product = |d| weft_graph::DimExpr::product(self.dims.exprs(d));
        let (outer, block) = (product(&ty.dims[..at]), product(&ty.dims[at..]));
        let name = f.names[y.0 as usize].trim_start_matches('%').to_string();
        self.push(Step::Collective(Collective {
            kind,
            group,
            from,
            to,
            segments,
            outer,
            block,
            dtype: dims::dtype(ty.dtype),
            label: name,
            source: self.places(op),
        }));
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
