//! mbarriers, bulk copies, tensor maps, wgmma, matrix loads and stores.

use super::form::Form;
use crate::error::Result;
use crate::exec::atomic::Reduction;
use crate::matrix::Matrix;
use crate::mbarrier::{MbarrierAction, MbarrierOp};
use crate::parse::ast::Operand as Text;
use crate::program::{AddressSpace, Op, Src};
use crate::scalar::Ty;
use crate::tensor_map::Field;
use crate::tma::{BulkCopy, Direction, TensorCopy};
use crate::wgmma::{Operand, Wgmma};

/// Order and scope: arrivals release and waits acquire, whatever the scope. Then space and `.b64`.
fn mbarrier(form: &mut Form, action: MbarrierAction) -> Result<MbarrierOp> {
    form.one_of(&[("release", ()), ("acquire", ()), ("relaxed", ())]);
    form.scope();
    let space = form.space().unwrap_or(AddressSpace::Generic);
    form.need("`.b64`", &[("b64", ())])?;
    Ok(MbarrierOp { action, space })
}

pub fn mbarrier_init(form: &mut Form) -> Result<Op> {
    let op = mbarrier(form, MbarrierAction::Init)?;
    form.add_address()?;
    form.add_src()?;
    Ok(Op::Mbarrier(op))
}

pub fn mbarrier_inval(form: &mut Form) -> Result<Op> {
    let op = mbarrier(form, MbarrierAction::Inval)?;
    form.add_address()?;
    Ok(Op::Mbarrier(op))
}

fn arrive(form: &mut Form, drops: bool) -> Result<Op> {
    let expects = form.flag("expect_tx");
    let mut op = mbarrier(form, MbarrierAction::Arrive { counted: false, expects, drops })?;
    if !matches!(form.peek(), Some(Text::Address { .. })) {
        form.add_dst()?;
    }
    form.add_address()?;
    let counted = !expects && form.n_left() > 0;
    if expects || counted {
        form.add_src()?;
    }
    op.action = MbarrierAction::Arrive { counted, expects, drops };
    Ok(Op::Mbarrier(op))
}

pub fn mbarrier_arrive(form: &mut Form) -> Result<Op> {
    arrive(form, false)
}

pub fn mbarrier_arrive_drop(form: &mut Form) -> Result<Op> {
    arrive(form, true)
}

fn tx(form: &mut Form, action: MbarrierAction) -> Result<Op> {
    let op = mbarrier(form, action)?;
    form.add_address()?;
    form.add_src()?;
    Ok(Op::Mbarrier(op))
}

pub fn mbarrier_expect_tx(form: &mut Form) -> Result<Op> {
    tx(form, MbarrierAction::ExpectTx)
}

pub fn mbarrier_complete_tx(form: &mut Form) -> Result<Op> {
    tx(form, MbarrierAction::CompleteTx)
}

/// `test_wait` and `try_wait`; a hint of how long to sleep changes nothing.
pub fn mbarrier_wait(form: &mut Form) -> Result<Op> {
    let parity = form.flag("parity");
    let op = mbarrier(form, MbarrierAction::Test { parity })?;
    form.add_dst()?;
    form.add_address()?;
    form.add_srcs(form.n_left())?;
    Ok(Op::Mbarrier(op))
}

/// What stands for the cache policy of `.L2::cache_hint`: read and dropped.
fn cache_policy(form: &mut Form, hinted: bool) -> Result<()> {
    if hinted {
        let operand = form.operand()?;
        form.src_of(operand)?;
    }
    Ok(())
}

fn reduction(form: &mut Form, ty: Ty) -> Result<Reduction> {
    let name = form.take(|m| {
        let known = ["add", "min", "max", "inc", "dec", "and", "or", "xor"];
        known.contains(&m).then(|| m.to_string())
    });
    let name = name.ok_or_else(|| form.bad("the reduction is missing"))?;
    let found = Reduction::find(&name, ty);
    found.ok_or_else(|| form.unsupported(&format!("the reduction `.{name}` of {ty:?}")))
}

/// Between the shared and global state spaces; true for a load.
fn direction(form: &mut Form) -> Result<bool> {
    let first = form.space().ok_or_else(|| form.bad("the destination's space is missing"))?;
    let second = form.space().ok_or_else(|| form.bad("the source's space is missing"))?;
    let shared = |s| matches!(s, AddressSpace::SharedCta | AddressSpace::SharedCluster);
    match (first, second) {
        (to, AddressSpace::Global) if shared(to) => {
            form.need("`.mbarrier::complete_tx::bytes`", &[("mbarrier::complete_tx::bytes", ())])?;
            Ok(true)
        }
        (AddressSpace::Global, from) if shared(from) => {
            form.need("`.bulk_group`", &[("bulk_group", ())])?;
            Ok(false)
        }
        _ => Err(form.unsupported("a copy between these spaces")),
    }
}

/// `[map, {x, y}]`: the map's address, and the coordinates for later.
fn tensor<'a>(form: &mut Form<'a>) -> Result<Vec<&'a Text>> {
    let Text::Address { parts, .. } = form.operand()? else {
        return Err(form.bad("expected `[map, {coordinates}]`"));
    };
    let [map, Text::Vector(at)] = parts.as_slice() else {
        return Err(form.unsupported("a tensor operand other than `[map, {coordinates}]`"));
    };
    let map = form.address_of(map, 0)?;
    form.src.push(map);
    Ok(at.iter().collect())
}

const RANKS: &[(&str, u8)] = &[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)];

/// Sources in order: shared address, map, mbarrier, mask, then coordinates.
pub fn tensor_copy(form: &mut Form) -> Result<Op> {
    let n_dims = form.need("the rank", RANKS)?;
    form.flag("tile");
    let multicast = form.flag("multicast::cluster");
    let hinted = form.flag("L2::cache_hint");
    let coordinates;
    let loads = direction(form)?;
    let direction = if loads {
        form.add_address()?;
        coordinates = tensor(form)?;
        form.add_address()?;
        if multicast {
            form.add_src()?;
        }
        Direction::In { multicast }
    } else {
        coordinates = tensor(form)?;
        form.add_address()?;
        form.src.swap(0, 1);
        Direction::Out { reduction: None }
    };
    finish_tensor(form, n_dims, direction, &coordinates, hinted)
}

fn finish_tensor(
    form: &mut Form,
    n_dims: u8,
    direction: Direction,
    coordinates: &[&Text],
    hinted: bool,
) -> Result<Op> {
    cache_policy(form, hinted)?;
    if coordinates.len() != usize::from(n_dims) {
        return Err(form.bad("another number of coordinates than dimensions"));
    }
    for at in coordinates {
        let src = form.src_of(at)?;
        form.src.push(src);
    }
    Ok(Op::TensorCopy(Box::new(TensorCopy { n_dims, direction })))
}

/// The element type stands in the map, so `.add` is joined with it when the copy runs.
pub fn tensor_reduce(form: &mut Form) -> Result<Op> {
    let n_dims = form.need("the rank", RANKS)?;
    form.flag("tile");
    let hinted = form.flag("L2::cache_hint");
    let names = [
        ("add", TensorReduction::Add),
        ("min", TensorReduction::Min),
        ("max", TensorReduction::Max),
        ("and", TensorReduction::And),
        ("or", TensorReduction::Or),
        ("xor", TensorReduction::Xor),
    ];
    let reduction = form.need("the reduction", &names)?;
    if direction(form)? {
        return Err(form.unsupported("a reduction into shared memory"));
    }
    let coordinates = tensor(form)?;
    form.add_address()?;
    form.src.swap(0, 1);
    let direction = Direction::OutTyped { reduction };
    finish_tensor(form, n_dims, direction, &coordinates, hinted)
}

pub use crate::tma::TensorReduction;

/// Nothing is cached here.
pub fn tensor_prefetch(form: &mut Form) -> Result<Op> {
    form.need("the rank", RANKS)?;
    form.flag("tile");
    form.need("`.L2`", &[("L2", ())])?;
    form.need("`.global`", &[("global", ())])?;
    let hinted = form.flag("L2::cache_hint");
    tensor(form)?;
    cache_policy(form, hinted)?;
    Ok(Op::Nop)
}

/// Sources in order: destination, source, size, mbarrier, mask.
pub fn bulk_copy(form: &mut Form) -> Result<Op> {
    let multicast = form.flag("multicast::cluster");
    let hinted = form.flag("L2::cache_hint");
    let spaces = [form.space(), form.space()];
    let shared = |s: Option<AddressSpace>| {
        matches!(s, Some(AddressSpace::SharedCta | AddressSpace::SharedCluster))
    };
    let loads = shared(spaces[0]);
    let from_shared = loads && shared(spaces[1]);
    let stores = spaces[0] == Some(AddressSpace::Global) && shared(spaces[1]);
    if !loads && !stores {
        return Err(form.unsupported("a copy between these spaces"));
    }
    if loads {
        form.need("`.mbarrier::complete_tx::bytes`", &[("mbarrier::complete_tx::bytes", ())])?;
    } else {
        form.need("`.bulk_group`", &[("bulk_group", ())])?;
    }
    form.add_address()?;
    form.add_address()?;
    form.add_src()?;
    if loads {
        form.add_address()?;
        if multicast {
            form.add_src()?;
        }
    }
    cache_policy(form, hinted)?;
    let direction =
        if loads { Direction::In { multicast } } else { Direction::Out { reduction: None } };
    Ok(Op::BulkCopy(Box::new(BulkCopy { direction, from_shared, element_bytes: 1 })))
}

pub fn bulk_reduce(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    form.flag("noftz");
    let hinted = form.flag("L2::cache_hint");
    let reduction = reduction(form, ty)?;
    if direction(form)? {
        return Err(form.unsupported("a reduction into shared memory"));
    }
    form.add_address()?;
    form.add_address()?;
    form.add_src()?;
    cache_policy(form, hinted)?;
    let direction = Direction::Out { reduction: Some(reduction) };
    let element_bytes = ty.bits() / 8;
    Ok(Op::BulkCopy(Box::new(BulkCopy { direction, from_shared: false, element_bytes })))
}

pub fn bulk_prefetch(form: &mut Form) -> Result<Op> {
    form.need("`.L2`", &[("L2", ())])?;
    form.need("`.global`", &[("global", ())])?;
    let hinted = form.flag("L2::cache_hint");
    form.add_address()?;
    form.add_src()?;
    cache_policy(form, hinted)?;
    Ok(Op::Nop)
}

pub fn bulk_commit(_: &mut Form) -> Result<Op> {
    Ok(Op::BulkCommit)
}

pub fn bulk_wait(form: &mut Form) -> Result<Op> {
    let read = form.flag("read");
    form.add_src()?;
    Ok(Op::BulkWait { read })
}

pub fn tensormap_replace(form: &mut Form) -> Result<Op> {
    form.need("`.tile`", &[("tile", ())])?;
    form.need("`.b1024`", &[("b1024", ())])?;
    form.need("the width", &[("b32", ()), ("b64", ())])?;
    let space = form.space().unwrap_or(AddressSpace::Generic);
    let plain = [
        ("global_address", Field::GlobalAddress),
        ("rank", Field::Rank),
        ("elemtype", Field::Element),
        ("interleave_layout", Field::Interleave),
        ("swizzle_mode", Field::SwizzleMode),
        ("fill_mode", Field::FillMode),
    ];
    type Indexed = fn(u8) -> Field;
    let indexed: [(&str, Indexed); 4] = [
        ("box_dim", Field::BoxDim),
        ("global_dim", Field::GlobalDim),
        ("global_stride", Field::GlobalStride),
        ("element_stride", Field::ElementStride),
    ];
    form.add_address()?;
    let field = match form.one_of(&plain) {
        Some(field) => field,
        None => {
            let make = form.need("the field", &indexed)?;
            let Text::Int(dimension @ 0..5) = form.operand()? else {
                return Err(form.bad("the dimension is not one of 0..5"));
            };
            make(*dimension as u8)
        }
    };
    form.add_src()?;
    Ok(Op::TensormapReplace(field, space))
}

pub fn wgmma(form: &mut Form) -> Result<Op> {
    form.need("`.sync`", &[("sync", ())])?;
    form.need("`.aligned`", &[("aligned", ())])?;
    let shape = form.take(|m| {
        let (n, k) = m.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?))
    });
    let (n, k) = shape.ok_or_else(|| form.bad("the shape is missing"))?;
    form.need("`.f32` as the type of D", &[("f32", ())])?;
    let operands = [
        ("bf16", Operand::Bf16),
        ("f16", Operand::F16),
        ("e4m3", Operand::E4m3),
        ("e5m2", Operand::E5m2),
    ];
    let a = form.need("the type of A", &operands)?;
    let b = form.need("the type of B", &operands)?;
    let mixed = a != b && (a.bytes() == 2 || b.bytes() == 2);
    if !n.is_multiple_of(8) || !(8..=256).contains(&n) || k != 32 / a.bytes() || mixed {
        return Err(form.unsupported("this shape with these types"));
    }
    let accumulators = form.vector()?;
    if accumulators.len() != n / 2 {
        return Err(form.bad(&format!("{} registers of D, not {}", accumulators.len(), n / 2)));
    }
    for register in accumulators {
        let dst = form.dst_of(register)?;
        if dst.is_sink() {
            return Err(form.unsupported("an accumulator that is dropped"));
        }
        form.dst.push(dst);
    }
    let of_a = form.vector()?;
    if of_a.len() != 1 && of_a.len() != 4 {
        return Err(form.bad(&format!("{} registers of A, not 4", of_a.len())));
    }
    for register in &of_a {
        let src = form.src_of(register)?;
        form.src.push(src);
    }
    form.add_srcs(2)?;
    let negate_a = is_negative(form)?;
    let negate_b = is_negative(form)?;
    let (mut transpose_a, mut transpose_b) = (false, false);
    if a.bytes() == 2 {
        if of_a.len() == 1 {
            transpose_a = immediate(form)? == 1;
        }
        transpose_b = immediate(form)? == 1;
    }
    let n_a_sources = of_a.len();
    let shape = Wgmma { n, k, a, b, n_a_sources, negate_a, negate_b, transpose_a, transpose_b };
    Ok(Op::Wgmma(Box::new(shape)))
}

fn immediate(form: &mut Form) -> Result<i64> {
    match form.operand()? {
        Text::Int(value) => Ok(*value as i64),
        _ => Err(form.bad("expected a number")),
    }
}

fn is_negative(form: &mut Form) -> Result<bool> {
    match immediate(form)? {
        1 => Ok(false),
        -1 => Ok(true),
        _ => Err(form.bad("a scale of an operand is 1 or -1")),
    }
}

fn sync_aligned(form: &mut Form) -> Result<()> {
    form.need("`.sync`", &[("sync", ())])?;
    form.need("`.aligned`", &[("aligned", ())])
}

pub fn wgmma_fence(form: &mut Form) -> Result<Op> {
    sync_aligned(form)?;
    Ok(Op::WgmmaFence)
}

pub fn wgmma_commit(form: &mut Form) -> Result<Op> {
    sync_aligned(form)?;
    Ok(Op::WgmmaCommit)
}

pub fn wgmma_wait(form: &mut Form) -> Result<Op> {
    sync_aligned(form)?;
    form.add_src()?;
    Ok(Op::WgmmaWait)
}

fn matrix(form: &mut Form) -> Result<Matrix> {
    sync_aligned(form)?;
    form.need("`.m8n8`", &[("m8n8", ())])?;
    let n = form.need("the number of tiles", &[("x1", 1), ("x2", 2), ("x4", 4)])?;
    let transposed = form.flag("trans");
    let space = form.space().unwrap_or(AddressSpace::Generic);
    form.need("`.b16`", &[("b16", ())])?;
    Ok(Matrix { n, transposed, space })
}

pub fn ldmatrix(form: &mut Form) -> Result<Op> {
    let matrix = matrix(form)?;
    let registers = form.vector()?;
    if registers.len() != usize::from(matrix.n) {
        return Err(form.bad("another number of registers than tiles"));
    }
    for register in registers {
        let dst = form.dst_of(register)?;
        form.dst.push(dst);
    }
    form.add_address()?;
    Ok(Op::Ldmatrix(matrix))
}

pub fn stmatrix(form: &mut Form) -> Result<Op> {
    let matrix = matrix(form)?;
    form.add_address()?;
    let registers = form.vector()?;
    if registers.len() != usize::from(matrix.n) {
        return Err(form.bad("another number of registers than tiles"));
    }
    for register in registers {
        let src: Src = form.src_of(register)?;
        form.src.push(src);
    }
    Ok(Op::Stmatrix(matrix))
}
