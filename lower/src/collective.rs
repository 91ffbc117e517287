//! What ranks do together: a step of its own, on row-major values.

use weft_graph::{Collective, CollectiveKind, Group, Step};
use weft_ir::module::OpData;
use weft_ir::op::Op;

use super::{Fault, Frame, Lower, dims};

impl<'a> Lower<'a> {
    pub(super) fn collective(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let kind = match op.op {
            Op::AllReduce => CollectiveKind::AllReduce,
            Op::ReduceScatter => CollectiveKind::ReduceScatter,
            _ => CollectiveKind::AllGather,
        };
        let id = op.attrs.get_axis("axis").ok_or("names no mesh axis")?;
        let axis = self.module.axes.get(id.0 as usize).ok_or("names no mesh axis of the module")?;
        let sizes = (u32::try_from(axis.size), u32::try_from(self.module.stride(id)));
        let (Ok(size), Ok(stride)) = sizes else { return Err("the mesh is too large".into()) };
        let group = Group { axis: axis.name.clone(), size, stride };

        let (x, y) = (op.operands[0], op.results[0]);
        let from = self.plain(f, x)?;
        let to = self.result_room(f, y)?;
        let ty = f.func.ty(x);
        // A sum for all has no dim: it is one block.
        let at = op.attrs.get_int("dim").unwrap_or(0) as usize;
        let product = |d| weft_graph::DimExpr::product(self.dims.exprs(d));
        let (outer, block) = (product(&ty.dims[..at]), product(&ty.dims[at..]));
        let name = f.names[y.0 as usize].trim_start_matches('%').to_string();
        self.push(Step::Collective(Collective {
            kind,
            group,
            from,
            to,
            outer,
            block,
            dtype: dims::dtype(ty.dtype),
            label: name,
            source: self.places(op),
        }));
        Ok(())
    }
}
