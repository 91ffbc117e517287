//! Checks a graph before anything uses it, so that a damaged or wrong file is an error and not a
//! crash.
//!
//! - Names of entries, kernels, and of the dims and buffers of an entry are unique.
//! - Every id is in range; a kernel has code for at least one CPU variant.
//! - Every expression stays within 62 bits at any dims within their bounds.
//! - A temp lies in the arena, at a multiple of 64; a constant has all its bytes.
//! - An output is the new value only of a weight or state of its own type.
//! - A weight's shape is constant, its names have a number for each stacked dim; copies of experts
//!   have places that fit it.
//! - A state keeps its layout when dims change: only its first dim above 1 may depend on them.
//! - A weight or state that several entries use has one type at the bounds in all of them.
//! - A loop index is that of an enclosing loop.
//! - A message has a place in its group.
//! - A collective has a group, sums f32 only, and scatters blocks that its ranks divide.
//! - An exchange has segments that its ranks divide.
//! - What is begun is done later in the same loop, once, and both halves name the same.
//! - Events are recorded before they are waited for, in the same body; a loop is on stream 0.
//! - Steps of different streams that touch the same bytes, one of them writing, are ordered.
//! - With every dim at its bound, every argument starts inside its buffer and every copy stays in
//!   it.
//!
//! What a kernel does beyond the start of its arguments is its compiler's promise.

use crate::order::{STREAMS_MAX, Storage, n_streams, unordered};
use crate::weight::placeholders;
use crate::{
    Arg, Buffer, BufferId, Collective, CollectiveKind, Copy, DType, DimDecl, DimExpr, Entry, Graph,
    Group, Half, Init, Kernel, Launch, Loop, Message, Role, Scalar, Step,
};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// What is wrong, and in which part.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct VerifyError {
    pub place: String,
    pub reason: String,
}

type Checked = Result<(), VerifyError>;

/// More than any machine has; sums of a few such sizes fit an i64.
const BYTES_MAX: i64 = 1 << 50;
/// Stored tensors of one buffer; DeepSeek-V3 has 58 * 256 of one kind.
const STACKED_MAX: i64 = 1 << 24;
const ALIGN: u64 = 64;

impl Graph {
    pub fn verify(&self) -> Checked {
        unique("graph", "kernel", self.kernels.iter().map(|kernel| kernel.name.as_str()))?;
        unique("graph", "entry", self.entries.iter().map(|entry| entry.name.as_str()))?;
        for kernel in &self.kernels {
            self.verify_kernel(kernel)?;
        }
        for entry in &self.entries {
            EntryCheck { graph: self, entry }.run()?;
        }
        self.verify_shared()
    }

    fn verify_kernel(&self, kernel: &Kernel) -> Checked {
        let place = format!("kernel {}", kernel.name);
        let has_code = !kernel.variants.is_empty() || kernel.ptx.is_some();
        ensure(has_code, &place, || "has no code".into())?;
        unique(&place, "variant", kernel.variants.iter().map(|variant| variant.cpu.name()))?;
        let of_variants = kernel.variants.iter().map(|variant| variant.object);
        for object in of_variants.chain(kernel.ptx.as_ref().map(|code| code.object)) {
            ensure((object.0 as usize) < self.objects.len(), &place, || {
                format!("names object {} of {}", object.0, self.objects.len())
            })?;
        }
        if let Some(code) = &kernel.ptx {
            ensure((1..=1024).contains(&code.threads), &place, || {
                format!("has blocks of {} threads, not 1 to 1024", code.threads)
            })?;
            ensure(code.cluster.is_none_or(|n| (1..=8).contains(&n)), &place, || {
                format!("has clusters of {} CTAs, not 1 to 8", code.cluster.unwrap_or(0))
            })?;
            for map in &code.maps {
                let rank = map.dims.len();
                let agree = map.strides_bytes.len() + 1 == rank && map.box_dims.len() == rank;
                ensure((1..=5).contains(&rank) && agree, &place, || {
                    format!("has a tensor map of {rank} dims that its strides or box do not fit")
                })?;
            }
        }
        ensure(kernel.scratch_bytes <= 1 << 32, &place, || {
            format!("asks for {} bytes of scratch", kernel.scratch_bytes)
        })
    }

    fn verify_shared(&self) -> Checked {
        let mut seen = BTreeMap::new();
        for entry in &self.entries {
            for buffer in &entry.buffers {
                if !matches!(buffer.role, Role::Weight | Role::State) {
                    continue;
                }
                let dims = entry.dims_max();
                let sizes: Vec<i64> = buffer.dims.iter().map(|dim| dim.eval(&dims)).collect();
                let here = (&entry.name, buffer.dtype, sizes);
                let first = seen.entry(&buffer.name).or_insert_with(|| here.clone());
                ensure(
                    (first.1, &first.2) == (here.1, &here.2),
                    &format!("entry {}", entry.name),
                    || {
                        format!(
                            "{} is {}{:?} here and {}{:?} in entry {}",
                            buffer.name, here.1, here.2, first.1, first.2, first.0
                        )
                    },
                )?;
            }
        }
        Ok(())
    }
}

struct EntryCheck<'a> {
    graph: &'a Graph,
    entry: &'a Entry,
}

impl EntryCheck<'_> {
    fn run(&self) -> Checked {
        let place = format!("entry {}", self.entry.name);
        unique(&place, "dim", self.entry.dims.iter().map(|dim| dim.name.as_str()))?;
        unique(&place, "buffer", self.entry.buffers.iter().map(|buffer| buffer.name.as_str()))?;
        for DimDecl { name, max } in &self.entry.dims {
            ensure((0..BYTES_MAX).contains(max), &place, || format!("{name} is bounded by {max}"))?;
        }
        ensure(self.entry.arena_bytes < BYTES_MAX as u64, &place, || {
            format!("asks for an arena of {} bytes", self.entry.arena_bytes)
        })?;
        for buffer in &self.entry.buffers {
            self.buffer(buffer)?;
        }
        self.steps(&self.entry.steps, &mut Vec::new())?;
        self.streams()
    }

    /// Whether steps of different streams are in order.
    fn streams(&self) -> Checked {
        let n = n_streams(&self.entry.steps);
        if n == 1 {
            return Ok(());
        }
        let found = unordered(&self.entry.steps, n, &Storage::placed(self.entry));
        let Some([first, second]) = found else { return Ok(()) };
        let (stream, of) = (second.order().stream, first.order().stream);
        let place = format!("entry {}, step {}", self.entry.name, second.label());
        let what = format!("touches on stream {stream} what {} does on {of}", first.label());
        fail(&place, format!("{what}, and does not wait for it"))
    }

    /// Whether the events of a body are there when they are waited for.
    fn events(&self, steps: &[Step]) -> Checked {
        let mut recorded = BTreeSet::new();
        for step in steps {
            let place = || format!("entry {}, step {}", self.entry.name, step.label());
            let order = step.order();
            let streams = if matches!(step, Step::Loop(_)) { 1 } else { STREAMS_MAX };
            ensure(order.stream < streams, &place(), || {
                format!("is on stream {}, of {streams}", order.stream)
            })?;
            for event in &order.waits {
                ensure(recorded.contains(event), &place(), || {
                    format!("waits for event {event}, which no step before it records")
                })?;
            }
            if let Some(event) = order.signal {
                let new = event <= steps.len() as u32 && recorded.insert(event);
                ensure(new, &place(), || format!("records event {event} again"))?;
            }
        }
        Ok(())
    }

    fn buffer(&self, buffer: &Buffer) -> Checked {
        let place = format!("entry {}, buffer {}", self.entry.name, buffer.name);
        for dim in &buffer.dims {
            self.finite(&place, dim)?;
        }
        self.finite(&place, &buffer.size_bytes())?;
        let dims = self.entry.dims_max();
        let size_bytes = buffer.size_bytes().eval(&dims);
        let sizes_fit = buffer.dims.iter().all(|dim| dim.eval(&dims) >= 0);
        ensure(sizes_fit && (0..BYTES_MAX).contains(&size_bytes), &place, || {
            format!("has {size_bytes} bytes")
        })?;
        match buffer.role {
            Role::Temp { offset } => ensure(
                offset.is_multiple_of(ALIGN)
                    && offset
                        .checked_add(size_bytes as u64)
                        .is_some_and(|end| end <= self.entry.arena_bytes),
                &place,
                || format!("{size_bytes} bytes at {offset} of the arena"),
            )?,
            Role::Constant(id) => {
                let bytes = self.graph.constants.get(id.0 as usize);
                ensure(
                    bytes.is_some_and(|bytes| bytes.len() as i64 >= size_bytes),
                    &place,
                    || format!("constant {} does not hold {size_bytes} bytes", id.0),
                )?;
            }
            Role::State => {
                let unit = |dim: &&DimExpr| **dim == DimExpr::constant(1);
                let inner = buffer.dims.iter().skip_while(unit).skip(1);
                ensure(inner.clone().all(|dim| dim.as_constant().is_some()), &place, || {
                    "is kept between runs, but its layout changes with the dims".into()
                })?;
            }
            Role::Input | Role::Output | Role::Weight => {}
        }
        if let Some(state) = buffer.alias {
            self.alias(&place, buffer, state)?;
        }
        self.weight(&place, buffer)
    }

    fn alias(&self, place: &str, output: &Buffer, state: BufferId) -> Checked {
        let Some(target) = self.entry.buffers.get(state.0 as usize) else {
            return fail(place, format!("updates buffer {}, which is not there", state.0));
        };
        let fits = output.role == Role::Output
            && matches!(target.role, Role::State | Role::Weight)
            && (target.dtype, &target.dims) == (output.dtype, &output.dims);
        ensure(fits, place, || format!("cannot be the new value of {}", target.name))
    }

    fn weight(&self, place: &str, buffer: &Buffer) -> Checked {
        let Some(weight) = &buffer.weight else {
            return ensure(buffer.role != Role::Weight, place, || {
                "does not say how it is stored".into()
            });
        };
        ensure(matches!(buffer.role, Role::Weight | Role::State), place, || {
            format!("is stored, but its role is {}", buffer.role.name())
        })?;
        let sizes: Option<Vec<i64>> = buffer.dims.iter().map(DimExpr::as_constant).collect();
        let Some(sizes) = sizes else {
            return fail(place, "is stored, but its shape is not constant".into());
        };
        let stacked = sizes.get(..weight.stacked()).unwrap_or(&[]);
        let count = stacked.iter().fold(1i64, |count, &size| count.saturating_mul(size));
        ensure(stacked.len() == weight.stacked() && count <= STACKED_MAX, place, || {
            format!("{} of its dims {sizes:?} are stacked", weight.stacked())
        })?;
        if let Init::Constant(value) = weight.init {
            ensure(value.is_finite(), place, || format!("starts as {value}"))?;
        }
        for template in std::iter::once(&weight.template).chain(&weight.duplicates) {
            ensure(placeholders(template).len() == weight.stacked(), place, || {
                format!("{} stacked dims are stored as {template}", weight.stacked())
            })?;
        }
        let fits = (weight.places.is_empty() && !weight.table) || weight.is_placed(&sizes);
        ensure(fits, place, || "has experts whose places do not fit it".into())
    }

    /// `counts` are those of the enclosing loops with every dim at its bound.
    fn steps(&self, steps: &[Step], counts: &mut Vec<i64>) -> Checked {
        self.halves(steps)?;
        self.events(steps)?;
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(launch, counts)?,
                Step::Copy(copy) => self.copy(copy, counts)?,
                Step::Collective(collective) => self.collective(collective, counts)?,
                Step::Message(message) => self.message(message, counts)?,
                Step::Loop(Loop { count, body, label, left, .. }) => {
                    let place = format!("entry {}, loop {label}", self.entry.name);
                    self.finite(&place, count)?;
                    if let Some(left) = left {
                        self.arg(&place, left, 4, counts)?;
                    }
                    counts.push(count.eval(&self.entry.dims_max()));
                    self.steps(body, counts)?;
                    counts.pop();
                }
            }
        }
        Ok(())
    }

    /// Whether what these steps begin and end are halves of the same.
    fn halves(&self, steps: &[Step]) -> Checked {
        let mut open: BTreeMap<u32, &Collective> = BTreeMap::new();
        for step in steps {
            let Step::Collective(c) = step else { continue };
            let place = || format!("entry {}, step {}", self.entry.name, c.label);
            match c.half {
                None => {}
                Some(Half::Start(n)) => {
                    let new = open.insert(n, c).is_none();
                    ensure(new, &place(), || format!("begins {n}, which is not done yet"))?;
                }
                Some(Half::Done(n)) => {
                    let same = open.remove(&n).is_some_and(|b| {
                        let order = c.order.clone();
                        Collective { half: c.half, order, ..b.clone() } == *c
                    });
                    ensure(same, &place(), || format!("ends {n}, which these steps do not begin"))?;
                }
            }
        }
        match open.first_key_value() {
            None => Ok(()),
            Some((n, c)) => fail(
                &format!("entry {}, step {}", self.entry.name, c.label),
                format!("begins {n}, which is never done"),
            ),
        }
    }

    fn launch(&self, launch: &Launch, counts: &[i64]) -> Checked {
        let place = format!("entry {}, step {}", self.entry.name, launch.label);
        ensure((launch.kernel.0 as usize) < self.graph.kernels.len(), &place, || {
            format!("launches kernel {} of {}", launch.kernel.0, self.graph.kernels.len())
        })?;
        for expr in [&launch.grid, &launch.flops, &launch.bytes] {
            self.finite(&place, expr)?;
        }
        for scalar in &launch.scalars {
            match scalar {
                Scalar::Dim(expr) => self.finite(&place, expr)?,
                Scalar::F32(_) => {}
                Scalar::LoopIndex(depth) => self.enclosing(&place, *depth, counts)?,
            }
        }
        ensure(launch.sms != Some(0), &place, || "may use no multiprocessor".into())?;
        let code = self.graph.kernels[launch.kernel.0 as usize].ptx.as_ref();
        let of_cluster = code.and_then(|code| code.cluster).unwrap_or(1);
        let whole = launch.sms.is_none_or(|sms| sms.is_multiple_of(of_cluster));
        ensure(whole, &place, || {
            let sms = launch.sms.unwrap_or(0);
            format!("may use {sms} multiprocessors, in clusters of {of_cluster} CTAs")
        })?;
        for at in launch.writes.iter().flatten() {
            ensure((*at as usize) < launch.args.len(), &place, || {
                format!("writes argument {at} of {}", launch.args.len())
            })?;
        }
        launch.args.iter().try_for_each(|arg| self.arg(&place, arg, 0, counts))
    }

    fn copy(&self, copy: &Copy, counts: &[i64]) -> Checked {
        let place = format!("entry {}, step {}", self.entry.name, copy.label);
        self.finite(&place, &copy.bytes)?;
        let bytes = copy.bytes.eval(&self.entry.dims_max());
        ensure(bytes >= 0, &place, || format!("copies {bytes} bytes"))?;
        self.arg(&place, &copy.from, bytes, counts)?;
        self.arg(&place, &copy.to, bytes, counts)
    }

    fn collective(&self, c: &Collective, counts: &[i64]) -> Checked {
        let place = format!("entry {}, step {}", self.entry.name, c.label);
        let group = &c.group;
        ensure(group.size > 0 && group.stride > 0, &place, || {
            format!("a group of {} ranks, {} apart", group.size, group.stride)
        })?;
        ensure(c.from.buffer != c.to.buffer, &place, || "reads where it writes".into())?;
        let sums = matches!(c.kind, CollectiveKind::AllReduce | CollectiveKind::ReduceScatter);
        ensure(!sums || c.dtype == DType::F32, &place, || format!("sums {} over ranks", c.dtype))?;
        let dims = self.entry.dims_max();
        for expr in [&c.outer, &c.block] {
            self.finite(&place, expr)?;
            ensure(expr.eval(&dims) >= 0, &place, || "has a negative size".into())?;
        }
        let cut = matches!(c.kind, CollectiveKind::ReduceScatter | CollectiveKind::Part);
        let whole = !cut || c.block.as_constant().is_some_and(|n| n % i64::from(group.size) == 0);
        ensure(whole, &place, || format!("{} ranks do not divide its blocks", group.size))?;
        let exchanges = matches!(c.kind, CollectiveKind::Exchange | CollectiveKind::ExchangeBack);
        ensure(exchanges == c.segments.is_some(), &place, || {
            format!("an {} has segments, and nothing else has", CollectiveKind::Exchange.name())
        })?;
        ensure(exchanges || c.room.is_none(), &place, || "has room that it does not use".into())?;
        if let Some(room) = &c.room {
            self.finite(&place, room)?;
        }
        if let Some(segments) = &c.segments {
            ensure(segments.n.is_multiple_of(group.size), &place, || {
                format!("{} ranks do not divide {} segments", group.size, segments.n)
            })?;
            for arg in [&segments.sent, &segments.got] {
                self.arg(&place, arg, 4 * (i64::from(segments.n) + 1), counts)?;
            }
        }
        let (from, to) = c.size_bytes();
        for (arg, bytes) in [(&c.from, from), (&c.to, to)] {
            self.finite(&place, &bytes)?;
            self.arg(&place, arg, bytes.eval(&dims), counts)?;
        }
        Ok(())
    }

    fn message(&self, m: &Message, counts: &[i64]) -> Checked {
        let place = format!("entry {}, step {}", self.entry.name, m.label);
        let Group { size, stride, .. } = m.group;
        ensure(stride > 0 && m.peer < size, &place, || {
            format!("is for place {} of {size} ranks, {stride} apart", m.peer)
        })?;
        self.finite(&place, &m.bytes)?;
        let bytes = m.bytes.eval(&self.entry.dims_max());
        ensure(bytes >= 0, &place, || format!("is of {bytes} bytes"))?;
        self.arg(&place, &m.at, bytes, counts)
    }

    fn arg(&self, place: &str, arg: &Arg, extent_bytes: i64, counts: &[i64]) -> Checked {
        let Some(buffer) = self.entry.buffers.get(arg.buffer.0 as usize) else {
            return fail(place, format!("uses buffer {}, which is not there", arg.buffer.0));
        };
        self.finite(place, &arg.byte_offset)?;
        for stride in &arg.strides {
            self.finite(place, &stride.bytes)?;
            self.enclosing(place, stride.loop_depth, counts)?;
        }
        let dims = self.entry.dims_max();
        if counts.iter().any(|&count| count <= 0) {
            return Ok(());
        }
        let strides = arg
            .strides
            .iter()
            .map(|stride| (stride.bytes.eval(&dims), counts[stride.loop_depth as usize]));
        let (least, greatest) = offset_range(arg.byte_offset.eval(&dims), strides);
        let size_bytes = buffer.size_bytes().eval(&dims);
        let inside = least >= 0 && greatest.saturating_add(extent_bytes) <= size_bytes;
        ensure(inside, place, || {
            format!(
                "reaches bytes {least}..{} of {}, which has {size_bytes}",
                greatest.saturating_add(extent_bytes),
                buffer.name
            )
        })
    }

    fn enclosing(&self, place: &str, depth: u32, counts: &[i64]) -> Checked {
        ensure((depth as usize) < counts.len(), place, || {
            format!("uses the index of loop {depth} inside {} loops", counts.len())
        })
    }

    fn finite(&self, place: &str, expr: &DimExpr) -> Checked {
        ensure(expr.range(&self.entry.dims).is_some(), place, || {
            format!("{} is out of range", expr.display(&self.entry.dims))
        })
    }
}

/// The least and greatest of `offset + sum of stride * index` for indices in `0..count`, of pairs
/// `(stride, count)` with positive counts.
pub fn offset_range(offset: i64, strides: impl Iterator<Item = (i64, i64)>) -> (i64, i64) {
    strides.fold((offset, offset), |(least, greatest), (stride, count)| {
        let last = stride.saturating_mul(count - 1);
        (least.saturating_add(last.min(0)), greatest.saturating_add(last.max(0)))
    })
}

fn unique<'a>(place: &str, kind: &str, names: impl Iterator<Item = &'a str>) -> Checked {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure(seen.insert(name), place, || format!("has two of {kind} {name}"))?;
    }
    Ok(())
}

fn ensure(holds: bool, place: &str, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { fail(place, reason()) }
}

fn fail(place: &str, reason: String) -> Checked {
    Err(VerifyError { place: place.into(), reason })
}
