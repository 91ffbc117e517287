//! Codes and group scales as a region's graph.
//!
//! An array `[.., R, C]` in groups of `r` rows and `c` columns is seen as `[.., ceil(R/r), r,
//! ceil(C/c), c]`, so that a group's largest element is a fold and its scale a broadcast. Groups
//! within rows that divide them evenly need no padding, and codes and scales come out of one loop.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::formats::Format;
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::Unsupported;
use super::columns::{COLUMNS, Decoded, EncodeColumns};
use super::graph::{Kind, NodeId, Whole};
use super::lower::{Lower, too_large};

/// How an array is cut.
pub(super) struct Cut {
    /// Its own dims.
    dims: Vec<Dim>,
    /// Its two last dims made whole groups.
    padded: Vec<Dim>,
    /// Each of them as groups and elements of a group; a side of one element has no dim.
    grouped: Vec<Dim>,
    /// Dims of `grouped` that are elements of a group.
    inner: Vec<usize>,
}

impl Cut {
    /// `blocks` are the numbers of groups of the two last dims.
    fn of(dims: &[Dim], group: &[i64], blocks: &[Dim]) -> Result<Cut, Unsupported> {
        let lead = dims.len() - 2;
        let (mut padded, mut grouped) = (dims[..lead].to_vec(), dims[..lead].to_vec());
        let mut inner = vec![];
        for side in 0..2 {
            let (size, blocks) = (dims[lead + side], blocks[side]);
            // One group that is not full is as long as what it holds.
            let by = match size.as_fixed() {
                Some(n) if blocks.is_one() => n,
                _ => group[side].max(1) as u64,
            };
            grouped.push(blocks);
            if by == 1 {
                padded.push(size);
                continue;
            }
            padded.push(blocks.checked_mul(Dim::fixed(by)).ok_or_else(too_large)?);
            inner.push(grouped.len());
            grouped.push(Dim::fixed(by));
        }
        Ok(Cut { dims: dims.to_vec(), padded, grouped, inner })
    }

    fn is_even(&self) -> bool {
        self.dims == self.padded
    }

    /// The dims of `grouped` that count groups, and all before.
    fn outer(&self) -> Vec<usize> {
        (0..self.grouped.len()).filter(|d| !self.inner.contains(d)).collect()
    }
}

impl Lower<'_> {
    /// `x` in groups; zero beyond it.
    fn in_groups(&mut self, x: NodeId, cut: &Cut) -> NodeId {
        let dtype = self.dtype(x);
        let mut x = x;
        let mut dims = cut.dims.clone();
        for dim in 0..dims.len() {
            if dims[dim] != cut.padded[dim] {
                dims[dim] = cut.padded[dim];
                let pad = Kind::Moved { x, dim, by: 0, fill: 0.0, inside: false };
                x = self.graph.push(pad, &dims, dtype);
            }
        }
        self.graph.push(Kind::Reshape(x), &cut.grouped, dtype)
    }

    /// An array in groups as it was.
    fn from_groups(&mut self, x: NodeId, cut: &Cut) -> NodeId {
        let dtype = self.dtype(x);
        let mut x = self.graph.push(Kind::Reshape(x), &cut.padded, dtype);
        let mut dims = cut.padded.clone();
        for dim in 0..dims.len() {
            if dims[dim] != cut.dims[dim] {
                dims[dim] = cut.dims[dim];
                let cut = Kind::Moved { x, dim, by: 0, fill: 0.0, inside: true };
                x = self.graph.push(cut, &dims, dtype);
            }
        }
        x
    }

    /// Codes of `x` and the scales of its groups.
    pub(super) fn encode(
        &mut self,
        x: NodeId,
        a: &Attrs,
        types: &[Type],
    ) -> Result<Vec<NodeId>, Unsupported> {
        let [codes, scales] = types else { return Err(too_large()) };
        if let Some(whole) = self.encode_columns(x, None, a, types) {
            let outs = types.iter().map(|t| (t.dims.clone(), t.dtype)).collect::<Vec<_>>();
            return Ok(self.graph.push_whole(whole, vec![x], &outs));
        }
        let group = a.get_ints("group").unwrap_or(&[1, 1]);
        let blocks = &scales.dims[scales.dims.len() - 2..];
        let cut = Cut::of(&self.dims(x), group, blocks)?;
        let scale = self.scales(x, a, &cut, scales);
        let (x, each) = self.with_each(x, scale, &cut);
        let y = self.f(Op::Div, &[x, each]);
        let y = match codes.dtype {
            DType::E5m6 => self.nearest(y, codes.dtype),
            _ => self.round(y, codes.dtype),
        };
        let y = if cut.is_even() { self.from_groups(y, &cut) } else { y };
        Ok(vec![y, scale])
    }

    /// The same of what `codes` and `scales` stand for.
    pub(super) fn recode(
        &mut self,
        codes: NodeId,
        scales: NodeId,
        a: &Attrs,
        types: &[Type],
    ) -> Result<Vec<NodeId>, Unsupported> {
        let group = a.get_ints("x_group").unwrap_or(&[1, 1]).to_vec();
        let through = a.get_dtype("through").unwrap_or(DType::F32);
        let of_rows = match group[..] {
            [1, side] if side > 0 && side as u64 % COLUMNS == 0 => {
                Some(Decoded { group: side as u64, scale: self.dtype(scales), through })
            }
            _ => None,
        };
        if let Some(decoded) = of_rows
            && let Some(whole) = self.encode_columns(codes, Some(decoded), a, types)
        {
            let outs = types.iter().map(|t| (t.dims.clone(), t.dtype)).collect::<Vec<_>>();
            return Ok(self.graph.push_whole(whole, vec![codes, scales], &outs));
        }
        let dims = self.dims(codes);
        let blocks = self.dims(scales);
        let cut = Cut::of(&dims, &group, &blocks[blocks.len() - 2..])?;
        let scales = self.round(scales, DType::F32);
        let stretch = Kind::Broadcast(scales, cut.outer());
        let each = self.graph.push(stretch, &cut.grouped, DType::F32);
        let each = self.from_groups(each, &cut);
        let codes = self.round(codes, DType::F32);
        let value = self.f(Op::Mul, &[codes, each]);
        let value = self.round(value, through);
        self.encode(value, a, types)
    }

    /// The kernel for groups of rows in columns, where sizes are known.
    fn encode_columns(
        &self,
        x: NodeId,
        decoded: Option<Decoded>,
        a: &Attrs,
        types: &[Type],
    ) -> Option<Whole> {
        let dims = self.dims(x);
        let [lead @ .., rows, cols] = &dims[..] else { return None };
        let [group, 1] = *a.get_ints("group")? else { return None };
        let byte = matches!(types[0].dtype, DType::E4m3 | DType::E5m2);
        let (rows, cols) = (rows.as_fixed()?, cols.as_fixed()?);
        (group > 1 && byte && rows > 0).then_some(())?;
        Some(Whole::EncodeColumns(EncodeColumns {
            lead: weft_ir::dim::product(lead)?,
            rows,
            cols,
            group: group as u64,
            x: self.dtype(x),
            decoded,
            code: types[0].dtype,
            scale: types[1].dtype,
            floor: a.get_float("floor").unwrap_or(0.0),
        }))
    }

    fn scales(&mut self, x: NodeId, a: &Attrs, cut: &Cut, ty: &Type) -> NodeId {
        let size = self.f(Op::Abs, &[x]);
        // What is infinite or no number takes no part in the scale.
        let most = self.number(f64::from(f32::MAX), size);
        let finite = self.scalar(Op::Le, &[size, most], DType::Bool);
        let zero = self.number(0.0, size);
        let size = self.f(Op::Select, &[finite, size, zero]);
        let mut top = self.in_groups(size, cut);
        if !cut.inner.is_empty() {
            let fold = Kind::Fold { x: top, dims: cut.inner.clone(), max: true };
            top = self.graph.push(fold, &ty.dims, DType::F32);
        }
        if let Some(floor) = a.get_float("floor").filter(|f| *f > 0.0) {
            let floor = self.number(floor, top);
            top = self.f(Op::Max, &[top, floor]);
        }
        let code = a.get_dtype("dtype").and_then(Format::of);
        let max = code.map_or(1.0, |format| f64::from(format.decode(format.max)));
        let max = self.number(max, top);
        let ratio = self.f(Op::Div, &[top, max]);
        let (zero, one) = (self.number(0.0, ratio), self.number(1.0, ratio));
        let none = self.scalar(Op::Eq, &[ratio, zero], DType::Bool);
        let scale = self.f(Op::Select, &[none, one, ratio]);
        self.round(scale, ty.dtype)
    }

    /// `x` and the scale of each element: in groups where they divide `x` evenly.
    fn with_each(&mut self, x: NodeId, scales: NodeId, cut: &Cut) -> (NodeId, NodeId) {
        let stretch = Kind::Broadcast(scales, cut.outer());
        let of = self.dtype(scales);
        let each = self.graph.push(stretch, &cut.grouped, of);
        match cut.is_even() {
            true => (self.in_groups(x, cut), each),
            false => (x, self.from_groups(each, cut)),
        }
    }
}
