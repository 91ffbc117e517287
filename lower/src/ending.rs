//! Products that end in the region which reads them.
//!
//! A region whose rows are those of a product, or of two with one left operand (gate and up), may
//! be computed where the sums are, in registers: what passes between is then neither written nor
//! read. Which these are is decided here, by the ops of a function alone; such products wait for
//! their region, and its backend says whether one kernel does both. Else they are launched one
//! after the other, as ever.

use std::collections::BTreeMap;

use weft_codegen::region::emit::held::Held;
use weft_codegen::region::graph::Buf;
use weft_graph::Arg;
use weft_ir::module::{Func, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};

use super::contract::{Multiplied, is_aligned};
use super::regions::hint;
use super::view::View;
use super::{Fault, Frame, Lower, Work, region, uses};
use crate::describe::product::{self, Ended, Form, Gemm};

/// The products that wait for a region, in the order in which it reads them.
pub struct Ending {
    pub products: Vec<OpId>,
}

/// The regions of a function that products end in, if a backend can.
pub fn endings(module: &Module, func: &Func) -> BTreeMap<OpId, Ending> {
    let mut found = BTreeMap::new();
    let mut taken: Vec<OpId> = vec![];
    for (at, (id, op)) in func.body_ops().enumerate() {
        let Some(callee) = op.attrs.get_func("func").filter(|_| op.op == Op::Fused) else {
            continue;
        };
        // One that attends has kernels of its own.
        let attends = module.func(callee).body_ops().any(|(_, op)| op.op == Op::Attention);
        if attends || !uses::consumed(module, op).is_empty() {
            continue;
        }
        let of =
            |v: &ValueId| func.def_op(*v).filter(|made| waits(module, func, (*made, *v), (at, op)));
        let made: Vec<OpId> = op.operands.iter().filter_map(of).collect();
        let made: Vec<OpId> = made.into_iter().filter(|m| !taken.contains(m)).collect();
        // The last of them, and the one that goes with it.
        let place = |id: &OpId| func.body.iter().position(|o| o == id);
        let Some(last) = made.iter().copied().max_by_key(place) else { continue };
        let with = |other: &OpId| *other == last || alike(func, func.op(*other), func.op(last));
        let mut products: Vec<OpId> = made.into_iter().filter(with).collect();
        products.truncate(2);
        if !products.contains(&last) {
            products = vec![last];
        }
        taken.extend(&products);
        found.insert(id, Ending { products });
    }
    found
}

/// May the product `id` wait until the region at hand? Nothing else may read it before, and nothing
/// in between may change what it reads.
fn waits(
    module: &Module,
    func: &Func,
    (id, v): (OpId, ValueId),
    (at, region): (usize, &OpData),
) -> bool {
    let op = func.op(id);
    let once = region.operands.iter().filter(|x| **x == v).count() == 1;
    if !matches!(op.op, Op::Matmul | Op::GroupedMatmul) || !once {
        return false;
    }
    let made = func.body.iter().position(|o| *o == id).unwrap_or(at);
    (made + 1..at).all(|between| {
        let op = func.op(func.body[between]);
        let changes = !op.op.is_pure() && op.op != Op::Fused || op.op.has(Trait::Collective);
        !changes && uses::consumed(module, op).is_empty() && !op.operands.contains(&v)
    })
}

/// Do two products differ by their right operands alone?
fn alike(func: &Func, a: &OpData, b: &OpData) -> bool {
    let right = |i: usize| i == 1 || i + 1 == a.operands.len() && a.attrs.get("y_group").is_some();
    let same = |i: usize| match right(i) {
        true => func.ty(a.operands[i]) == func.ty(b.operands[i]),
        false => a.operands[i] == b.operands[i],
    };
    let attr = |name: &str| a.attrs.get(name) == b.attrs.get(name);
    let names = ["tx", "ty", "dtype", "promote", "accumulate", "x_group", "y_group"];
    a.op == b.op
        && a.operands.len() == b.operands.len()
        && (0..a.operands.len()).all(same)
        && names.into_iter().all(attr)
        && func.ty(a.results[0]) == func.ty(b.results[0])
}

impl<'a> Lower<'a> {
    /// The launches of a region and of the products that wait for it.
    pub(super) fn ended(
        &mut self,
        f: &mut Frame<'a>,
        op: &'a OpData,
        ending: &Ending,
    ) -> Result<(), Fault> {
        let func: &'a Func = f.func;
        let products: Vec<&'a OpData> = ending.products.iter().map(|id| func.op(*id)).collect();
        if self.one_kernel(f, op, &products)? {
            return Ok(());
        }
        for product in products {
            self.op(f, product)?;
        }
        self.op(f, op)
    }

    /// One launch for all, if the backend has a kernel.
    fn one_kernel(
        &mut self,
        f: &mut Frame<'a>,
        op: &'a OpData,
        products: &[&'a OpData],
    ) -> Result<bool, Fault> {
        let callee = op.attrs.get_func("func").ok_or("names no function")?;
        let (module, region): (_, &'a Func) = (self.module, self.module.func(callee));
        let mut described = vec![];
        for product in products {
            let plain = self.multiplied(f, product)?;
            let n = plain.n;
            described.push((self.with_scales(f, product, plain)?, n));
        }
        let (mut first, n) = described[0].clone();
        let gemms: Vec<Gemm> = described.iter().map(|(product, _)| product.plain()).collect();
        let same = |g: &Gemm| g.a == gemms[0].a && g.b == gemms[0].b && g.c == gemms[0].c;
        if !gemms.iter().all(same) || !matches!(gemms[0].form, Form::Dense | Form::Rows { .. }) {
            return Ok(false);
        }
        let of = |v: &ValueId| products.iter().position(|p| p.results[0] == *v);
        let mut given: Vec<Option<Arg>> = vec![];
        for x in &op.operands {
            given.push(match of(x) {
                Some(_) => None,
                None => Some(self.plain(f, *x)?),
            });
        }
        let mut whole = op.clone();
        for span in products.iter().flat_map(|p| &p.spans) {
            if !whole.spans.contains(span) {
                whole.spans.push(*span);
            }
        }
        let (wanted, place) = (self.wanted(f, &op.results), self.place(&whole));
        let aligned = |buf: Buf| match buf {
            Buf::Operand(i) => given[i as usize].as_ref().is_none_or(is_aligned),
            Buf::Result(i) => wanted[i as usize].as_ref().is_none_or(is_aligned),
            Buf::Workspace(_) => true,
        };
        let size = |d| self.dims.expr(d);
        let names = (&*hint(region), &*place);
        let compiled = region::compile_at(self.backend, module, region, names, &size, &aligned);
        let compiled = compiled.map_err(|e| e.to_string())?;
        let ([apart], true) = (&compiled.launches[..], compiled.aliases.is_empty()) else {
            return Ok(false);
        };
        let at = |p: &&OpData| op.operands.iter().position(|x| *x == p.results[0]);
        let held: Vec<Buf> =
            products.iter().filter_map(at).map(|i| Buf::Operand(i as u32)).collect();
        let dims = &f.func.ty(products[0].results[0]).dims;
        let nest = apart.nest.as_ref();
        let Some(mut held) = nest.and_then(|nest| Held::new(nest, &held, dims)) else {
            return Ok(false);
        };
        let buffers = held.signature.buffers.iter().copied();
        held.unaligned = buffers.filter(|buf| !aligned(*buf)).collect();
        let stays = |p: &&OpData| f.last_use[p.results[0].0 as usize] > f.at;
        let keeps: Vec<bool> = products.iter().map(stays).collect();
        let lies = |p: &OpData| f.dests.get(&p.results[0]).is_none_or(is_aligned);
        first.c_mut().aligned = products.iter().zip(&keeps).all(|(p, keeps)| !keeps || lies(p));
        let of_region = held.signature.buffers.clone();
        let ended = Ended {
            product: first,
            keeps: keeps.clone(),
            scalars: region::scalars(&size, &held.signature.scalars),
            region: held,
            apart,
        };
        let Some(planned) = self.machine().ended_product(&ended, &self.dims.decls(), &place) else {
            return Ok(false);
        };
        let mut args = self.product_args(f, products, n, &keeps)?;
        // Products that are kept lie behind the factors.
        let first_kept = 1 + products.len();
        let n_kept = keeps.iter().filter(|keeps| **keeps).count();
        let mut writes: Vec<u32> = (first_kept..first_kept + n_kept).map(|at| at as u32).collect();
        let mut made = vec![];
        for (r, at) in op.results.iter().zip(wanted) {
            let ty = f.func.ty(*r);
            let name = &f.names[r.0 as usize];
            let at = at.unwrap_or_else(|| self.temp(f.id, name, ty));
            made.push(at.clone());
            let view = View::row_major(&self.dims, at, ty.dtype, &ty.dims);
            self.define(f, *r, view);
        }
        for buf in of_region {
            if matches!(buf, Buf::Result(_)) {
                writes.push(args.len() as u32);
            }
            args.push(match buf {
                Buf::Operand(i) => given[i as usize].clone().ok_or("reads what is not stored")?,
                Buf::Result(i) => made[i as usize].clone(),
                Buf::Workspace(_) => return Err("has a workspace in one launch".into()),
            });
        }
        let work = Work {
            sms: planned.kernel.cta.grid_max,
            kernel: self.kernels.add(planned.kernel, planned.scratch_bytes),
            args,
            writes,
            scalars: planned.scalars,
            grid: planned.grid,
            flops: planned.flops,
            bytes: planned.bytes,
        };
        self.launch(f, &whole, work);
        Ok(true)
    }

    /// A, each B, C of those that are kept, scales of A and of each B, offsets.
    fn product_args(
        &mut self,
        f: &mut Frame<'a>,
        products: &[&'a OpData],
        n: usize,
        keeps: &[bool],
    ) -> Result<Vec<Arg>, Fault> {
        let mut args = vec![self.view(f, products[0].operands[0])?.at];
        for product in products {
            args.push(self.view(f, product.operands[1])?.at);
        }
        for (product, _) in products.iter().zip(keeps).filter(|(_, keeps)| **keeps) {
            args.push(self.result_room(f, product.results[0])?);
        }
        if let [of_a, _] = products[0].operands[n..] {
            args.push(self.plain(f, of_a)?);
        }
        for product in products {
            if let [_, of_b] = product.operands[n..] {
                args.push(self.plain(f, of_b)?);
            }
        }
        for offsets in &products[0].operands[2..n] {
            args.push(self.plain(f, *offsets)?);
        }
        Ok(args)
    }

    fn with_scales(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        plain: Multiplied,
    ) -> Result<product::Multiplied, Fault> {
        Ok(match op.operands.len() > plain.n {
            true => product::Multiplied::Scaled(self.scaled(f, op, plain)?),
            false => product::Multiplied::Plain(plain.gemm),
        })
    }
}
