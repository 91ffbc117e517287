//! Matrix products: from operands that lie anywhere to the description of a GEMM.

use weft_graph::{Arg, DType, DimExpr, Launch, Role, Step};
use weft_ir::module::{OpData, ValueId};
use weft_ir::op::Op;

use super::view::{View, row_major};
use super::{Fault, Frame, Lower, TempInfo, Work, dims};
use crate::describe::product::{Form, Gemm, Matrix, Operand, ScaledGemm, Scales, Sum};

/// A batch of matrices: leading dims as one, and the two last.
struct Batch {
    count: DimExpr,
    matrix: Matrix,
    rows: DimExpr,
    cols: DimExpr,
}

/// A product whose first `n` operands are not scales; `swapped` says which factor is read
/// transposed.
pub(super) struct Multiplied {
    pub gemm: Gemm,
    pub n: usize,
    pub swapped: [bool; 2],
}

/// What a copy of codes is: its sizes and what made it.
#[derive(Clone, PartialEq)]
pub(super) struct Layout {
    dims: [DimExpr; 3],
    kernel: String,
}

impl<'a> Lower<'a> {
    /// The product of an op whose result has no room yet.
    pub(super) fn multiplied(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
    ) -> Result<Multiplied, Fault> {
        match op.op {
            Op::Matmul => self.matmul(f, op),
            _ => self.grouped(f, op),
        }
    }

    fn matmul(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<Multiplied, Fault> {
        let (tx, ty) = (op.attrs.get_flag("tx"), op.attrs.get_flag("ty"));
        let (x, y) = (op.operands[0], op.operands[1]);
        let (x_rank, y_rank) = (f.func.ty(x).rank(), f.func.ty(y).rank());
        let b = self.batch(f, y, ty)?;
        let shared = y_rank == 2 && x_rank > 2;
        // One matrix for all of a batch: the batch is more rows of one product.
        let a = match shared && !tx {
            true => self.rows(f, x)?,
            false => self.batch(f, x, tx)?,
        };
        let count = a.count.clone();
        let c_rows = a.rows.clone();
        let mut gemm = Gemm {
            m: c_rows.clone(),
            n: b.cols.clone(),
            k: a.cols,
            c: matrix(self, f, op.results[0], c_rows * b.cols.clone()),
            a: a.matrix,
            b: b.matrix,
            form: match count.as_constant() {
                Some(1) => Form::Dense,
                _ => Form::Batch { count },
            },
            accumulate: false,
            epilogue: None,
        };
        gemm.c.row_stride = b.cols;
        Ok(Multiplied { gemm, n: 2, swapped: [tx, ty] })
    }

    fn grouped(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<Multiplied, Fault> {
        let (x, w, offsets) = (op.operands[0], op.operands[1], op.operands[2]);
        let groups = f.func.ty(offsets).dims[0].as_fixed().unwrap_or(1).saturating_sub(1);
        let groups = DimExpr::constant(groups as i64);
        let outer = op.op == Op::GroupedOuter;
        let swapped = [outer, op.attrs.get_flag("ty")];
        let gemm = if op.op == Op::GroupedMatmul {
            let (a, b) = (self.batch(f, x, false)?, self.batch(f, w, op.attrs.get_flag("ty"))?);
            let mut c = matrix(self, f, op.results[0], 0.into());
            c.row_stride = b.cols.clone();
            let form = Form::Rows { groups };
            let (m, n, k) = (a.rows, b.cols, a.cols);
            Gemm { m, n, k, a: a.matrix, b: b.matrix, c, form, accumulate: false, epilogue: None }
        } else {
            let (a, b) = (self.batch(f, x, true)?, self.batch(f, w, false)?);
            let mut c = matrix(self, f, op.results[0], a.rows.clone() * b.cols.clone());
            c.row_stride = b.cols.clone();
            let form = Form::Inner { groups };
            let (m, n, k) = (a.rows, b.cols, a.cols);
            Gemm { m, n, k, a: a.matrix, b: b.matrix, c, form, accumulate: false, epilogue: None }
        };
        Ok(Multiplied { gemm, n: 3, swapped })
    }

    pub(super) fn product(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let mut described = self.multiplied(f, op)?;
        let n = described.n;
        let place = self.place(op);
        let scales = &op.operands[n..];
        let mut args = vec![];
        for x in &op.operands[..2] {
            args.push(self.view(f, *x)?.at);
        }
        let mut behind = vec![];
        for v in scales.iter().chain(&op.operands[2..n]) {
            behind.push(self.plain(f, *v)?);
        }
        let room = self.result_room(f, op.results[0])?;
        described.gemm.c.aligned = is_aligned(&room);
        args.push(room);
        args.extend(behind);
        let planned = match scales {
            [] => {
                let gemm = described.gemm;
                for matrix in [&gemm.a, &gemm.b, &gemm.c] {
                    if !matches!(matrix.dtype, DType::F32 | DType::Bf16) {
                        let why = format!("no kernel multiplies matrices of {}", matrix.dtype);
                        return Err(why.into());
                    }
                }
                self.machine().product(&gemm, &self.dims.decls(), &place)?
            }
            _ => {
                let mut scaled = self.scaled(f, op, described)?;
                self.turn_operands(f, op, &mut scaled, &mut args);
                self.machine().scaled_product(&scaled, &self.dims.decls(), &place)?
            }
        };
        let sms = planned.kernel.cta.grid_max;
        let kernel = self.kernels.add(planned.kernel, planned.scratch_bytes);
        let work = Work {
            kernel,
            args,
            writes: vec![2],
            sms,
            scalars: planned.scalars,
            grid: planned.grid,
            flops: planned.flops,
            bytes: planned.bytes,
        };
        self.launch(f, op, work);
        Ok(())
    }

    /// A product of codes, whose scales are operands `n` and `n + 1`.
    pub(super) fn scaled(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        Multiplied { gemm, n, swapped }: Multiplied,
    ) -> Result<ScaledGemm, Fault> {
        let mut scales = vec![];
        for (i, name) in ["x_group", "y_group"].into_iter().enumerate() {
            let Some([rows, cols]) = op.attrs.get_ints(name) else {
                return Err(format!("its scales have no `{name}`").into());
            };
            let v = op.operands[n + i];
            let ty = f.func.ty(v);
            let strides = row_major(&self.dims, &ty.dims);
            let (dtype, rank) = (dims::dtype(ty.dtype), ty.rank());
            let (row, col) = (strides[rank - 2].clone(), strides[rank - 1].clone());
            let matrix = match rank {
                2 => 0.into(),
                _ => strides[rank - 3].clone(),
            };
            let (group, row_stride, col_stride) = match swapped[i] {
                false => ([*rows, *cols], row, col),
                true => ([*cols, *rows], col, row),
            };
            scales.push(Scales { dtype, group, row_stride, col_stride, group_stride: matrix });
        }
        let operand =
            |codes: Matrix, scales: &Scales| Operand { codes, scales: Some(scales.clone()) };
        Ok(ScaledGemm {
            m: gemm.m,
            n: gemm.n,
            k: gemm.k,
            a: operand(gemm.a, &scales[0]),
            b: operand(gemm.b, &scales[1]),
            c: gemm.c,
            form: gemm.form,
            accumulate: gemm.accumulate,
            promote: op.attrs.get_int("promote"),
            sum: match op.attrs.get_word("accumulate") {
                Some("hopper14") => Sum::Hopper14,
                _ => Sum::F32,
            },
        })
    }

    /// Copies operands that the backend wants in another order.
    fn turn_operands(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        scaled: &mut ScaledGemm,
        args: &mut [Arg],
    ) {
        let place = self.place(op);
        let both = self.machine().turned(scaled, &self.dims.decls(), &place);
        for (side, turned) in both.into_iter().enumerate() {
            let Some(turned) = turned else { continue };
            let operand = if side == 0 { &mut scaled.a } else { &mut scaled.b };
            operand.codes = turned.matrix(side);
            let v = op.operands[side];
            let layout = Layout {
                dims: [turned.matrices, turned.lines, turned.line_stride],
                kernel: turned.kernel.name.clone(),
            };
            if let Some((known, at)) = f.turned.get(&v)
                && *known == layout
            {
                args[side] = at.clone();
                continue;
            }
            let name = format!("{}.turned", f.names[v.0 as usize]);
            let role = Role::Temp { offset: 0 };
            let id = self.buffer(&name, DType::E4m3, layout.dims.to_vec(), role);
            self.temps.insert(id, TempInfo { scope: self.open.clone(), frame: f.id });
            let to = Arg::whole(id);
            let from = std::mem::replace(&mut args[side], to.clone());
            let sms = turned.kernel.cta.grid_max;
            let kernel = self.kernels.add(turned.kernel, 0);
            let label = format!("{}.turn", f.names[v.0 as usize].trim_start_matches('%'));
            let step = Launch {
                writes: Some(vec![1]),
                sms,
                scalars: turned.scalars,
                source: self.places(op),
                bytes: turned.bytes,
                ..Launch::new(kernel, vec![from, to.clone()], turned.grid, label)
            };
            self.push(Step::Launch(step));
            f.turned.insert(v, (layout, to));
        }
    }

    /// All dims but the last as rows.
    fn rows(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<Batch, Fault> {
        let last = f.func.ty(v).rank() - 1;
        let mut view = self.view(f, v)?;
        if view.merged(&self.dims, 0, last).is_none() {
            view = self.own(f, v)?;
        }
        let (rows, row_stride) = view.merged(&self.dims, 0, last).ok_or("its rows overflow")?;
        Ok(Batch {
            count: 1.into(),
            rows,
            cols: self.dims.expr(view.dims[last]),
            matrix: Matrix {
                dtype: dims::dtype(view.dtype),
                row_stride,
                col_stride: view.strides[last].clone(),
                group_stride: 0.into(),
                aligned: is_aligned(&view.at),
            },
        })
    }

    /// Leading dims as a batch of matrices, whose dims are swapped if `swapped`.
    fn batch(&mut self, f: &mut Frame<'a>, v: ValueId, swapped: bool) -> Result<Batch, Fault> {
        let lead = f.func.ty(v).rank() - 2;
        let mut view = self.view(f, v)?;
        if view.merged(&self.dims, 0, lead).is_none() {
            view = self.own(f, v)?;
        }
        let (count, group_stride) =
            view.merged(&self.dims, 0, lead).ok_or("its batch overflows")?;
        let (r, c) = if swapped { (lead + 1, lead) } else { (lead, lead + 1) };
        Ok(Batch {
            count,
            rows: self.dims.expr(view.dims[r]),
            cols: self.dims.expr(view.dims[c]),
            matrix: Matrix {
                dtype: dims::dtype(view.dtype),
                row_stride: stride(&view, r),
                col_stride: stride(&view, c),
                group_stride,
                aligned: is_aligned(&view.at),
            },
        })
    }

    /// A row-major copy of a value, which is how it is seen from now on.
    pub(super) fn own(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<View, Fault> {
        let view = self.plain_view(f, v)?;
        self.define(f, v, view.clone());
        Ok(view)
    }
}

/// Whether it begins at a multiple of 16 bytes in every iteration; buffers do.
pub(super) fn is_aligned(at: &Arg) -> bool {
    at.byte_offset.is_multiple_of(16) && at.strides.iter().all(|s| s.bytes.is_multiple_of(16))
}

/// The stride of a dim; of a dim of one element, any will do.
fn stride(view: &View, dim: usize) -> DimExpr {
    view.strides[dim].clone()
}

/// A row-major result.
fn matrix(cx: &Lower, f: &Frame, v: ValueId, group_stride: DimExpr) -> Matrix {
    let ty = f.func.ty(v);
    let strides = row_major(&cx.dims, &ty.dims);
    Matrix {
        dtype: dims::dtype(ty.dtype),
        row_stride: strides[ty.rank().saturating_sub(2)].clone(),
        col_stride: 1.into(),
        group_stride,
        // Known when there is room for it.
        aligned: false,
    }
}
