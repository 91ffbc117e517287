//! Attention and its derivative: operands are read where they lie, with strides.

mod codes;

use weft_graph::{Arg, DType, DimExpr, Role};
use weft_ir::module::{OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::ty;

use super::contract::is_aligned;
use super::{Fault, Frame, Lower, TempInfo, Work, dims};
use crate::describe::attention::{Attention, Buffer, Gradients, Heads, Pages, Part};

/// An op's operands by what they are.
struct Operands<'o> {
    q: &'o [ValueId],
    k: &'o [ValueId],
    v: ValueId,
    /// o, lse and do; of the derivative only.
    saved: &'o [ValueId],
    masks: &'o [ValueId],
}

impl<'a> Lower<'a> {
    pub(super) fn attention(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let x = operands(op).ok_or("has too few operands")?;
        let dtype = f.func.ty(x.v).dtype;
        if !matches!(dtype, ty::DType::F32 | ty::DType::Bf16) {
            return Err(format!("no kernel attends in {}", dtype.name()).into());
        }
        // Statistics are f32 always: the second of what was saved.
        let saved = x.saved.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, v)| v);
        if let Some(other) = saved.map(|v| f.func.ty(*v).dtype).find(|d| *d != dtype) {
            let (other, dtype) = (other.name(), dtype.name());
            return Err(format!("o and do are {other}, q, k and v {dtype}: no kernel").into());
        }
        let mut described = self.described(f, op, &x)?;
        let ends = self.ends(f, op, &mut described)?;
        let mut made = vec![];
        for (i, r) in op.results.iter().enumerate() {
            let wanted = i > 0 || described.keeps_o;
            made.push(if wanted { Some(self.result_room(f, *r)?) } else { None });
        }
        described.aligned = match op.op {
            Op::Attention => made.first().is_some_and(|o| o.as_ref().is_none_or(is_aligned)),
            _ => made.iter().flatten().all(is_aligned),
        };
        // Statistics are read one at a time.
        let saved = x.saved.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, v)| v);
        for v in x.q.iter().chain(x.k).chain([&x.v]).chain(saved) {
            described.aligned &= is_aligned(&self.view(f, *v)?.at);
        }
        let (place, dims) = (self.place(op), self.dims.decls());
        let planned = match op.op {
            Op::Attention => self.machine().attention(&described, &dims, &place)?,
            _ => {
                let gradients = self.gradients(f, op, &x)?;
                self.machine().attention_gradient(&described, &gradients, &dims, &place)?
            }
        };
        let mut workspaces = vec![];
        for bytes in planned.workspaces {
            let name = format!("{}.workspace", op.op.name());
            let id = self.buffer(&name, DType::U8, vec![bytes], Role::Temp { offset: 0 });
            self.temps.insert(id, TempInfo { scope: self.open.clone(), frame: f.id });
            workspaces.push(Arg::whole(id));
        }
        for launch in planned.launches {
            let mut args = vec![];
            let mut writes = vec![];
            for (at, buffer) in launch.buffers.iter().enumerate() {
                if buffer.is_made(op.op == Op::Attention) {
                    writes.push(at as u32);
                }
                let arg = match buffer {
                    Buffer::Codes(i) => Some(ends[*i].0.clone()),
                    Buffer::Scales(i) => Some(ends[*i].1.clone()),
                    Buffer::Workspace(i) => workspaces.get(*i).cloned(),
                    _ => self.argument(f, op, &x, &made, *buffer)?,
                };
                args.push(arg.ok_or("has a kernel that writes what no one wants")?);
            }
            let sms = launch.kernel.cta.grid_max;
            let kernel = self.kernels.add(launch.kernel, launch.scratch_bytes);
            let (scalars, grid) = (launch.scalars, launch.grid);
            let (flops, bytes) = (launch.flops, launch.bytes);
            self.launch(f, op, Work { kernel, args, writes, sms, scalars, grid, flops, bytes });
        }
        Ok(())
    }

    fn described(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        x: &Operands,
    ) -> Result<Attention, Fault> {
        let (q, k) = (f.func.ty(x.q[0]).clone(), f.func.ty(x.k[0]).clone());
        let pages = match x.masks.last().filter(|_| op.attrs.get_flag("pages")) {
            Some(pages) => Some(self.pages(f, x.v, *pages)?),
            None => None,
        };
        let mut parts = vec![];
        for (q, k) in x.q.iter().zip(x.k) {
            parts.push(Part { q: self.heads(f, *q)?, k: self.keys(f, *k, &pages)? });
        }
        let v = self.keys(f, x.v, &pages)?;
        let o = match op.op {
            Op::Attention => self.heads_of_result(f, op.results[0])?,
            _ => self.heads(f, x.saved[0])?,
        };
        Ok(Attention {
            dtype: dims::dtype(f.func.ty(x.v).dtype),
            batch: self.dims.expr(q.dims[0]),
            queries: self.dims.expr(q.dims[1]),
            keys: match &pages {
                Some(pages) => pages.of_request.clone() * pages.size,
                None => self.dims.expr(k.dims[1]),
            },
            parts,
            v,
            v_is_k: x.v == x.k[0],
            o,
            scale: op.attrs.get_float("scale").unwrap_or(1.0),
            causal: op.attrs.get_flag("causal"),
            offset: op.attrs.get_flag("offset"),
            segments: op.attrs.get_flag("segments"),
            pages,
            codes: vec![],
            keeps_o: true,
            // Known when there is room for the results.
            aligned: false,
        })
    }

    fn gradients(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        x: &Operands,
    ) -> Result<Gradients, Fault> {
        let n = x.q.len();
        let mut made = vec![];
        for r in &op.results {
            made.push(self.heads_of_result(f, *r)?);
        }
        let d_o = self.heads(f, x.saved[2])?;
        let dv = made.pop().ok_or("has too few results")?;
        let dk = made.split_off(n);
        Ok(Gradients { d_o, dq: made, dk, dv })
    }

    /// How an operand `[B, rows, heads, width]` lies; copied where the elements of a head are
    /// apart.
    fn heads(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<Heads, Fault> {
        let mut view = self.view(f, v)?;
        let apart = view.strides[3].as_constant() != Some(1) && !view.dims[3].is_one();
        if apart {
            view = self.own(f, v)?;
        }
        let fixed = |d: weft_ir::dim::Dim| d.as_fixed().and_then(|n| i64::try_from(n).ok());
        let (Some(heads), Some(width)) = (fixed(view.dims[2]), fixed(view.dims[3])) else {
            return Err("heads and their width must be numbers".into());
        };
        let strides = [0, 1, 2].map(|d| view.strides[d].clone());
        Ok(Heads { heads, width, strides })
    }

    /// The same of keys or values, which may be a pool of pages.
    fn keys(
        &mut self,
        f: &mut Frame<'a>,
        v: ValueId,
        pages: &Option<Pages>,
    ) -> Result<Heads, Fault> {
        let mut heads = self.heads(f, v)?;
        if let Some(pages) = pages {
            if heads.strides[0] != heads.strides[1].clone() * pages.size {
                return Err("has a pool whose pages do not lie one after the other".into());
            }
            heads.strides[0] = DimExpr::zero();
        }
        Ok(heads)
    }

    fn pages(&mut self, f: &Frame<'a>, pool: ValueId, pages: ValueId) -> Result<Pages, Fault> {
        let (of_pool, of_pages) = (&f.func.ty(pool).dims, &f.func.ty(pages).dims);
        let size = of_pool[1].as_fixed().and_then(|n| i64::try_from(n).ok());
        Ok(Pages {
            size: size.ok_or("the positions of a page must be a number")?,
            of_request: self.dims.expr(of_pages[1]),
            pool: self.dims.expr(of_pool[0]),
        })
    }

    fn heads_of_result(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<Heads, Fault> {
        let dims = f.func.ty(v).dims.clone();
        let fixed = |d: usize| dims[d].as_fixed().and_then(|n| i64::try_from(n).ok());
        let (Some(heads), Some(width)) = (fixed(2), fixed(3)) else {
            return Err("heads and their width must be numbers".into());
        };
        Ok(Heads::row_major(self.dims.expr(dims[1]), heads, width))
    }

    fn argument(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        x: &Operands,
        made: &[Option<Arg>],
        buffer: Buffer,
    ) -> Result<Option<Arg>, Fault> {
        let n = x.q.len();
        let forward = op.op == Op::Attention;
        let offset = usize::from(op.attrs.get_flag("offset"));
        Ok(Some(match buffer {
            Buffer::Q(i) => self.view(f, x.q[i])?.at,
            Buffer::K(i) => self.view(f, x.k[i])?.at,
            Buffer::V => self.view(f, x.v)?.at,
            Buffer::O if forward => return Ok(made[0].clone()),
            Buffer::O => self.view(f, x.saved[0])?.at,
            Buffer::Lse if forward => return Ok(made[1].clone()),
            Buffer::Lse => self.plain(f, x.saved[1])?,
            Buffer::Start => self.plain(f, x.masks[0])?,
            Buffer::QuerySegments => self.plain(f, x.masks[offset])?,
            Buffer::KeySegments => self.plain(f, x.masks[offset + 1])?,
            Buffer::Pages => self.plain(f, *x.masks.last().ok_or("has no pages")?)?,
            Buffer::DO => self.view(f, x.saved[2])?.at,
            Buffer::DQ(i) => return Ok(made[i].clone()),
            Buffer::DK(i) => return Ok(made[n + i].clone()),
            Buffer::DV => return Ok(made[2 * n].clone()),
            Buffer::Codes(_) | Buffer::Scales(_) | Buffer::Workspace(_) => return Ok(None),
        }))
    }
}

fn operands(op: &OpData) -> Option<Operands<'_>> {
    let n = usize::try_from(op.attrs.get_int("parts")?).ok()?;
    let (q, rest) = op.operands.split_at_checked(n)?;
    let (k, rest) = rest.split_at_checked(n)?;
    let (v, rest) = rest.split_first()?;
    let n_saved = if op.op == Op::Attention { 0 } else { 3 };
    let (saved, masks) = rest.split_at_checked(n_saved)?;
    (n > 0).then_some(Operands { q, k, v: *v, saved, masks })
}
