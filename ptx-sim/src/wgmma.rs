//! Warpgroup products: each warp of the four does its sixteen rows of `D += A * B`.
//!
//! Operands in shared memory are found through descriptors, of K-major and MN-major tiles. Sums run
//! in f32 in order of k, or as Hopper's tensor cores are known to sum fp8 ([`Accumulate`]).

use crate::device::{Accumulate, Completion};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Next;
use crate::exec::memory::Place;
use crate::machine::Machine;
use crate::memory::SHARED_START;
use crate::numeric::{Fp8, bf16_of, bits_f32, f16_of, f32_of};
use crate::program::{Inst, Src};
use crate::race::{Agent, AgentKind, Epoch, Touch};
use crate::swizzle::Swizzle;
use crate::warp::{LANES, Warp};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Bf16,
    F16,
    E4m3,
    E5m2,
}

impl Operand {
    pub fn bytes(self) -> usize {
        match self {
            Operand::Bf16 | Operand::F16 => 2,
            Operand::E4m3 | Operand::E5m2 => 1,
        }
    }

    fn is_fp8(self) -> bool {
        self.bytes() == 1
    }

    fn decode(self, bits: u64) -> f32 {
        match self {
            Operand::Bf16 => bf16_of(bits),
            Operand::F16 => f16_of(bits),
            Operand::E4m3 => Fp8::E4m3.table()[bits as u8 as usize],
            Operand::E5m2 => Fp8::E5m2.table()[bits as u8 as usize],
        }
    }
}

/// The shape and kind of one `wgmma.mma_async`; operands are `a`, `b`, `scale-d` in `src`.
#[derive(Clone, Debug)]
pub struct Wgmma {
    pub n: usize,
    /// 32 bytes of each operand.
    pub k: usize,
    pub a: Operand,
    pub b: Operand,
    /// Registers of A, before `b` in the sources; 1 for a descriptor.
    pub n_a_sources: usize,
    pub negate_a: bool,
    pub negate_b: bool,
    /// MN-major instead of K-major.
    pub transpose_a: bool,
    pub transpose_b: bool,
}

/// One issued and not yet executed.
struct Pending {
    pc: u32,
    line: u32,
    /// Descriptor values; 0 for A in registers.
    descriptors: [u64; 2],
    adds: bool,
    /// Already executed when it was issued.
    is_done: bool,
}

#[derive(Default)]
pub struct WgmmaState {
    open: Vec<Pending>,
    groups: VecDeque<Vec<Pending>>,
    n_committed: u32,
    fence_instant: u32,
    /// Registers being filled, and by which line.
    filling: Vec<(u32, u32)>,
}

impl WgmmaState {
    pub fn fills(&self, register: u32) -> bool {
        self.filling.iter().any(|(r, _)| *r == register)
    }

    pub fn line_of(&self, register: u32) -> Option<u32> {
        let of = |p: &&Pending| p.line > 0;
        let filled = self.filling.iter().rev().find(|(r, _)| *r == register).map(|(_, l)| *l);
        filled.or(self.open.iter().chain(self.groups.iter().flatten()).find(of).map(|p| p.line))
    }

    pub fn check_end(&self) -> Result<()> {
        match self.groups.iter().flatten().chain(&self.open).next() {
            None => Ok(()),
            Some(pending) => {
                let message = "the warp exits with this wgmma in flight; \
                               `wgmma.wait_group 0` comes first";
                Err(Error::at(ErrorKind::MissingWait, pending.line, message))
            }
        }
    }
}

/// A matrix descriptor, taken apart.
struct Descriptor {
    start: u32,
    /// Leading and stride byte offsets.
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    fn decode(bits: u64) -> Result<Descriptor> {
        let field = |at: u32| ((bits >> at) as u32 & 0x3fff) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let unused = bits & !(0x3fff | 0x3fff << 16 | 0x3fff << 32 | 0x3 << 62);
        if unused != 0 {
            let message = format!(
                "the descriptor {bits:#x} sets bits {unused:#x}: a base offset or what no field has"
            );
            return Err(Error::new(ErrorKind::Operand, message));
        }
        let start = field(0);
        let pattern = swizzle.period_bytes() - 1;
        if swizzle != Swizzle::None && start & pattern & !0x7f != 0 {
            let message = format!(
                "the descriptor {bits:#x} starts at {start:#x}, inside the swizzle's pattern of \
                 {} bytes",
                swizzle.period_bytes()
            );
            return Err(Error::new(ErrorKind::Operand, message));
        }
        Ok(Descriptor { start, leading: field(16), stride: field(32), swizzle })
    }

    /// Address of the 16-byte chunk with element (`row`, byte `k_bytes`) of a K-major tile.
    fn k_major(&self, row: u32, k_bytes: u32) -> u32 {
        let (group, inner) = (row / 8, row % 8);
        let plain = match self.swizzle {
            Swizzle::None => group * self.stride + k_bytes / 16 * self.leading + inner * 16,
            swizzle => group * self.stride + inner * swizzle.span_bytes() + k_bytes / 16 * 16,
        };
        self.swizzle.apply(self.start + plain) + k_bytes % 16
    }

    /// Of element (`row`, `k`) of two bytes in an MN-major tile.
    fn mn_major(&self, row: u32, k: u32) -> u32 {
        let span = self.swizzle.span_bytes();
        let per_atom = span / 2;
        let (atom, inner) = (row / per_atom, row % per_atom);
        let (group, k_inner) = (k / 8, k % 8);
        // Without a swizzle the two offsets change places.
        let plain = match self.swizzle {
            Swizzle::None => atom * self.stride + group * self.leading,
            _ => atom * self.leading + group * self.stride,
        };
        let byte = plain + k_inner * span + inner * 2;
        self.swizzle.apply(self.start + (byte & !15)) + byte % 16
    }
}

impl Machine<'_> {
    pub(crate) fn wgmma_fence(&mut self, warp: &mut Warp) -> Result<Next> {
        warp.wgmma.fence_instant = warp.instant;
        Ok(Next::Following)
    }

    pub(crate) fn wgmma(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        shape: &Wgmma,
        mask: u32,
    ) -> Result<Next> {
        if mask != u32::MAX {
            let message = format!("lanes {:#x} take no part", !mask);
            return Err(Error::new(ErrorKind::Divergence, message));
        }
        self.check_fenced(warp, inst, shape)?;
        let in_registers = shape.n_a_sources > 1;
        let b = self.uniform(cta, warp, inst.src[shape.n_a_sources], mask);
        let a = if in_registers { 0 } else { self.uniform(cta, warp, inst.src[0], mask) };
        let adds = self.uniform(cta, warp, inst.src[shape.n_a_sources + 1], mask) & 1 == 1;
        let pc = warp.groups[0].pc;
        for dst in &inst.dst {
            warp.in_flight[dst.register as usize] += 1;
            warp.wgmma.filling.push((dst.register, inst.line));
        }
        for src in inst.src.iter().take(if in_registers { shape.n_a_sources } else { 0 }) {
            if let Src::Register(r) = src {
                warp.in_flight[*r as usize] += 1;
            }
        }
        warp.n_in_flight += 1;
        let mut pending =
            Pending { pc, line: inst.line, descriptors: [a, b], adds, is_done: false };
        self.touch_operands(cta, warp, inst, shape, &pending)?;
        let now = match self.launch.completion {
            Completion::Eager => true,
            Completion::Lazy => false,
            // In order: behind one that waits, all wait.
            Completion::Random { .. } => {
                let waits = |p: &Pending| !p.is_done;
                let behind = warp.wgmma.groups.iter().flatten().chain(&warp.wgmma.open).any(waits);
                !behind && self.next_random().is_multiple_of(2)
            }
        };
        if now {
            self.multiply(cta, warp, &pending)?;
            pending.is_done = true;
        }
        warp.wgmma.open.push(pending);
        Ok(Next::Following)
    }

    fn check_fenced(&self, warp: &Warp, inst: &Inst, shape: &Wgmma) -> Result<()> {
        let accumulators = inst.dst.iter().map(|d| d.register);
        let n_a = if shape.n_a_sources > 1 { shape.n_a_sources } else { 0 };
        let of_a = inst.src[..n_a].iter().filter_map(|s| match s {
            Src::Register(r) => Some(*r),
            _ => None,
        });
        let since = warp.wgmma.fence_instant;
        let mut registers = accumulators.chain(of_a);
        if since == 0 || registers.any(|r| warp.is_touched_since(r, since)) {
            let message = "registers of this wgmma were written after the last \
                           `wgmma.fence.sync.aligned`, or there was none";
            return Err(Error::new(ErrorKind::MissingFence, message));
        }
        Ok(())
    }

    /// Checks what will be read of shared memory against writes, and remembers it.
    fn touch_operands(
        &mut self,
        cta: usize,
        warp: &Warp,
        inst: &Inst,
        shape: &Wgmma,
        pending: &Pending,
    ) -> Result<()> {
        let agent = Agent::new(AgentKind::Wgmma, warp.id);
        let epoch = Epoch { agent, time: warp.wgmma.n_committed + 1 };
        let knowledge = &warp.knowledge;
        let touch = Touch { epoch, knowledge, is_async: true, is_atomic: false, line: inst.line };
        let first_row = warp.index % 4 * 16;
        let mut sides = vec![(1, 0..shape.n as u32, shape.transpose_b)];
        if shape.n_a_sources == 1 {
            sides.push((0, first_row..first_row + 16, shape.transpose_a));
        }
        for (side, rows, transposed) in sides {
            let descriptor = Descriptor::decode(pending.descriptors[side])?;
            let mut chunks: Vec<u32> = vec![];
            if transposed {
                for row in rows.step_by(8) {
                    chunks.extend((0..shape.k as u32).map(|k| descriptor.mn_major(row, k)));
                }
            } else {
                for row in rows {
                    chunks.extend([0, 16].map(|k| descriptor.k_major(row, k)));
                }
            }
            for chunk in chunks {
                self.touch_chunk(cta, chunk, touch, ["A", "B"][side])?;
            }
        }
        Ok(())
    }

    fn touch_chunk(&mut self, cta: usize, chunk: u32, touch: Touch, name: &str) -> Result<()> {
        let end = self.shared_end();
        if chunk < SHARED_START || chunk + 16 > end {
            let message = format!(
                "the descriptor of {name} reaches offset {} of shared memory, which has {} bytes",
                i64::from(chunk) - i64::from(SHARED_START),
                end - SHARED_START
            );
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        if !self.launch.check_races {
            return Ok(());
        }
        if !self.cta(cta).shadow.is_written(chunk as usize, 16) {
            let message = format!(
                "the descriptor of {name} reaches bytes that nothing has written, at offset {} of \
                 shared memory",
                chunk - SHARED_START
            );
            return Err(Error::new(ErrorKind::Operand, message));
        }
        self.touch(Place::Shared { cta, offset: chunk }, 16, false, touch)
    }

    /// Rows of an operand in shared memory, decoded: `rows` by `k`, k innermost.
    fn operand(
        &self,
        cta: usize,
        bits: u64,
        format: Operand,
        rows: std::ops::Range<u32>,
        k: usize,
        transposed: bool,
    ) -> Result<Vec<f32>> {
        let descriptor = Descriptor::decode(bits)?;
        let shared = &self.ctas[cta].as_ref().expect("the running CTA is resident").shared;
        let n_bytes = format.bytes();
        let mut out = Vec::with_capacity(rows.len() * k);
        for row in rows {
            for i in 0..k as u32 {
                let at = if transposed {
                    descriptor.mn_major(row, i)
                } else {
                    descriptor.k_major(row, i * n_bytes as u32)
                } as usize;
                let code = match n_bytes {
                    1 => u64::from(shared[at]),
                    _ => u64::from(u16::from_le_bytes([shared[at], shared[at + 1]])),
                };
                out.push(format.decode(code));
            }
        }
        Ok(out)
    }

    fn multiply(&mut self, cta: usize, warp: &mut Warp, pending: &Pending) -> Result<()> {
        let kernel = self.kernel;
        let inst = &kernel.code[pending.pc as usize];
        let crate::program::Op::Wgmma(shape) = &inst.op else { return Ok(()) };
        let (n, k) = (shape.n, shape.k);
        let first_row = warp.index % 4 * 16;
        let mut a = if shape.n_a_sources > 1 {
            fragment_a(warp, inst, shape)
        } else {
            let rows = first_row..first_row + 16;
            self.operand(cta, pending.descriptors[0], shape.a, rows, k, shape.transpose_a)?
        };
        let rows = 0..n as u32;
        let mut b =
            self.operand(cta, pending.descriptors[1], shape.b, rows, k, shape.transpose_b)?;
        if shape.negate_a {
            a.iter_mut().for_each(|x| *x = -*x);
        }
        if shape.negate_b {
            b.iter_mut().for_each(|x| *x = -*x);
        }
        let mut d = vec![0f32; 16 * n];
        if pending.adds {
            for (i, row, column) in accumulators(n) {
                for lane in 0..LANES {
                    let bits = warp.register(inst.dst[i].register)[lane];
                    d[row(lane) * n + column(lane)] = f32_of(bits);
                }
            }
        }
        let narrow = self.launch.accumulate == Accumulate::Hopper14 && shape.a.is_fp8();
        if narrow {
            for (row, d) in d.chunks_mut(n).enumerate() {
                for (column, d) in d.iter_mut().enumerate() {
                    *d = sum_hopper14(&a[row * k..][..k], &b[column * k..][..k], *d);
                }
            }
        } else {
            // Columns innermost: independent sums, each in order of k.
            let mut b_by_k = vec![0f32; k * n];
            for (column, b) in b.chunks(k).enumerate() {
                for (i, &value) in b.iter().enumerate() {
                    b_by_k[i * n + column] = value;
                }
            }
            for (d, a) in d.chunks_mut(n).zip(a.chunks(k)) {
                for (&a, b) in a.iter().zip(b_by_k.chunks(n)) {
                    for (d, &b) in d.iter_mut().zip(b) {
                        *d += a * b;
                    }
                }
            }
        }
        for (i, row, column) in accumulators(n) {
            let register = warp.register_mut(inst.dst[i].register);
            for (lane, bits) in register.iter_mut().enumerate() {
                *bits = bits_f32(d[row(lane) * n + column(lane)]);
            }
        }
        Ok(())
    }

    pub(crate) fn wgmma_commit(&mut self, warp: &mut Warp) -> Result<Next> {
        let group = std::mem::take(&mut warp.wgmma.open);
        warp.wgmma.groups.push_back(group);
        warp.wgmma.n_committed += 1;
        Ok(Next::Following)
    }

    pub(crate) fn wgmma_wait(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        mask: u32,
    ) -> Result<Next> {
        let left = self.uniform(cta, warp, inst.src[0], mask) as usize;
        while warp.wgmma.groups.len() > left {
            let group = warp.wgmma.groups.pop_front().unwrap_or_default();
            for pending in group {
                if !pending.is_done {
                    self.multiply(cta, warp, &pending)?;
                }
                self.land(warp, &pending);
            }
        }
        let time = warp.wgmma.n_committed - warp.wgmma.groups.len() as u32;
        let agent = Agent::new(AgentKind::Wgmma, warp.id);
        warp.knowledge.generic.learn(Epoch { agent, time });
        Ok(Next::Following)
    }

    /// Its registers are the program's again.
    fn land(&mut self, warp: &mut Warp, pending: &Pending) {
        let kernel = self.kernel;
        let inst = &kernel.code[pending.pc as usize];
        let crate::program::Op::Wgmma(shape) = &inst.op else { return };
        for dst in &inst.dst {
            warp.in_flight[dst.register as usize] -= 1;
            let mine = warp.wgmma.filling.iter().position(|(r, _)| *r == dst.register);
            if let Some(i) = mine {
                warp.wgmma.filling.swap_remove(i);
            }
        }
        if shape.n_a_sources > 1 {
            for src in &inst.src[..shape.n_a_sources] {
                if let Src::Register(r) = src {
                    warp.in_flight[*r as usize] -= 1;
                }
            }
        }
        warp.n_in_flight -= 1;
    }
}

type OfLane = Box<dyn Fn(usize) -> usize>;

/// For each register of D: the row within the warp's sixteen and the column, by lane.
fn accumulators(n: usize) -> impl Iterator<Item = (usize, OfLane, OfLane)> {
    (0..n / 2).map(|i| {
        let row: OfLane = Box::new(move |lane| lane / 4 + 8 * (i / 2 % 2));
        let column: OfLane = Box::new(move |lane| i / 4 * 8 + lane % 4 * 2 + i % 2);
        (i, row, column)
    })
}

/// A from four registers a lane: pairs of 16 bits, or fours of 8.
fn fragment_a(warp: &Warp, inst: &Inst, shape: &Wgmma) -> Vec<f32> {
    let n_bytes = shape.a.bytes();
    let per_register = 4 / n_bytes;
    let mut out = vec![0f32; 16 * shape.k];
    for (i, &src) in inst.src[..shape.n_a_sources].iter().enumerate() {
        let Some(lanes) = warp.plain(src) else { continue };
        for (lane, bits) in lanes.iter().enumerate() {
            let row = lane / 4 + 8 * (i % 2);
            let first = lane % 4 * per_register + i / 2 * (16 / n_bytes);
            for j in 0..per_register {
                let code = bits >> (8 * n_bytes * j) & (u64::MAX >> (64 - 8 * n_bytes));
                out[row * shape.k + first + j] = shape.a.decode(code);
            }
        }
    }
    out
}

/// One step of 32 terms as Hopper sums them: every product and the accumulator are cut, toward
/// zero, to 14 bits below the largest exponent among them, then added exactly.
fn sum_hopper14(a: &[f32], b: &[f32], accumulator: f32) -> f32 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    let terms: Vec<f64> = products.chain([f64::from(accumulator)]).collect();
    if terms.iter().any(|t| !t.is_finite()) {
        return terms.iter().sum::<f64>() as f32;
    }
    let exponent =
        |t: &f64| if *t == 0.0 { i32::MIN } else { (t.to_bits() >> 52 & 0x7ff) as i32 - 1023 };
    let largest = terms.iter().map(exponent).max().unwrap_or(i32::MIN).max(-100);
    let unit = 2f64.powi(largest - 13);
    (terms.iter().map(|t| (t / unit).trunc()).sum::<f64>() * unit) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper14_cuts_what_lies_below_the_fourteenth_bit() {
        let one = [1.0f32; 32];
        let mut b = [0.0f32; 32];
        b[0] = 1.0;
        b[1] = 2f32.powi(-13) * 1.75;
        b[2] = -2f32.powi(-14);
        // The largest exponent is 0, so 2^-13 is the last bit: 1.75 of it become 1, -0.5 become 0.
        assert_eq!(sum_hopper14(&one, &b, 0.0), 1.0 + 2f32.powi(-13));
        // A large accumulator cuts the products.
        assert_eq!(sum_hopper14(&one, &b, 8192.0), 8193.0);
        assert_eq!(sum_hopper14(&one, &b, 16384.0), 16384.0);
    }
}
