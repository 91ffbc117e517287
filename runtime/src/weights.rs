//! Between a store's buffers and the tensors of a checkpoint: drawing, reading, collecting.
//!
//! A stacked buffer is many tensors under published names; a tensor's random numbers are keyed by
//! its own name, so that they do not depend on how layers are stacked. Moments, `NAME.m` and
//! `NAME.v` of a weight `NAME`, are the optimizer's; buffers without a published name (caches) are
//! stored nowhere.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use weft_graph::{Cut, DType, Init, WeightInfo};

use crate::checkpoint::reader::CheckpointReader;
use crate::checkpoint::tensor_file::{NewTensor, TensorFile};
use crate::checkpoint::{CheckpointError, Dtype};
use crate::exec::{ExecError, Store};
use crate::memory::as_bytes;
use crate::quantize;
use crate::ranks::{Meeting, Rank, RankError, collective};
use crate::train::philox::Stream;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Rank(#[from] Box<RankError>),
    #[error("not available yet: weight {name} of type {dtype}")]
    DType { name: String, dtype: DType },
    #[error("another rank says of its weights what cannot be read: {0}")]
    Told(String),
    #[error("{folder}: `{copy}` is stored as a copy of `{of}` and differs from it")]
    Copy { folder: String, copy: String, of: String },
}

/// A buffer that checkpoints hold.
struct Stored {
    name: String,
    dtype: DType,
    dims: Vec<i64>,
    info: WeightInfo,
    /// Whose part it is, where ranks divide it.
    rank: usize,
}

/// Which file of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Model,
    Optimizer,
}

/// Every stored buffer of one part, in the store's order.
fn stored(store: &Store, part: Part) -> Result<Vec<Stored>, WeightsError> {
    let all = store.list();
    let is_moment = |name: &str| {
        let of = name.strip_suffix(".m").or_else(|| name.strip_suffix(".v"));
        of.is_some_and(|of| all.iter().any(|(n, k)| n == of && k.weight.is_some()))
    };
    let mut found = vec![];
    for (name, kept) in &all {
        let Some(info) = kept.weight.clone().filter(|info| !info.table) else { continue };
        let own = if is_moment(name) { Part::Optimizer } else { Part::Model };
        if own != part {
            continue;
        }
        if published(kept.dtype).is_none() && info.coded.is_none() {
            return Err(WeightsError::DType { name: name.clone(), dtype: kept.dtype });
        }
        let rank = store.rank();
        let (dtype, dims) = (kept.dtype, kept.dims.clone());
        found.push(Stored { name: name.clone(), dtype, dims, info, rank });
    }
    Ok(found)
}

/// What a checkpoint calls an element type that weights and states may have.
fn published(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::Bf16 => Some(Dtype::BF16),
        _ => None,
    }
}

impl Stored {
    fn size_bytes(&self) -> usize {
        let len = self.dims.iter().product::<i64>() as usize;
        (len * self.dtype.bits() as usize).div_ceil(8)
    }

    /// The shape of one stored tensor.
    fn shape(&self) -> Vec<u64> {
        match &self.info.coded {
            Some(coded) => coded.dims.clone(),
            None => {
                let dims = self.whole_dims();
                dims[self.info.stacked()..].iter().map(|&n| n as u64).collect()
            }
        }
    }

    /// The dims of the buffer with all ranks' parts.
    fn whole_dims(&self) -> Vec<i64> {
        let mut dims = self.dims.clone();
        self.info.cuts.iter().for_each(|cut| dims[cut.dim as usize] *= i64::from(cut.parts));
        dims
    }

    /// What this buffer holds of a tensor.
    fn own(&self, values: &[f32]) -> Vec<f32> {
        let (mut shape, mut own) = (self.shape(), values.to_vec());
        for cut in &self.info.cuts {
            let Some(dim) = (cut.dim as usize).checked_sub(self.info.stacked()) else { continue };
            let inner = shape[dim..].iter().product::<u64>() as usize;
            shape[dim] /= u64::from(cut.parts);
            let (part, place) = (inner / cut.parts as usize, cut.place(self.rank));
            let of = |block: &[f32]| block[place * part..(place + 1) * part].to_vec();
            own = own.chunks_exact(inner.max(1)).flat_map(of).collect();
        }
        own
    }

    /// How what this buffer holds is stored: its tensors may not be the first.
    fn own_info(&self) -> WeightInfo {
        let mut info = self.info.clone();
        for cut in &self.info.cuts {
            if let Some(start) = info.starts.get_mut(cut.dim as usize) {
                *start += cut.place(self.rank) as u32 * self.dims[cut.dim as usize] as u32;
            }
        }
        info
    }

    /// The stored tensors that this buffer holds, or holds a part of, with their positions.
    fn tensors(&self) -> Vec<(String, usize)> {
        self.own_info().stored_names(&self.dims).collect()
    }

    /// `fill` makes the elements of each tensor, which are rounded to the buffer's type.
    fn write(
        &self,
        store: &Store,
        mut fill: impl FnMut(&str, &[u64], &mut [f32]) -> Result<(), CheckpointError>,
    ) -> Result<(), WeightsError> {
        let shape = self.shape();
        let mut values = vec![0.0f32; shape.iter().product::<u64>() as usize];
        let mut narrow = vec![];
        for (name, position) in self.tensors() {
            fill(&name, &shape, &mut values)?;
            let part = (!self.info.cuts.is_empty()).then(|| self.own(&values));
            let own = part.as_deref().unwrap_or(&values);
            let coded = self.info.coded.as_ref().map(|coded| quantize::part(coded, own));
            let bytes = match (&coded, self.dtype) {
                (Some(bytes), _) => bytes,
                (None, DType::Bf16) => {
                    narrow.resize(own.len(), bf16::ZERO);
                    narrow.convert_from_f32_slice(own);
                    as_bytes(&narrow)
                }
                (None, _) => as_bytes(own),
            };
            store.write_bytes(&self.name, position * bytes.len(), bytes)?;
        }
        Ok(())
    }
}

/// Gives every weight and state the value a run starts with; `std` is the deviation of those that
/// are drawn.
pub fn initialise(store: &Store, seed: u64, std: f64) -> Result<(), WeightsError> {
    for part in [Part::Model, Part::Optimizer] {
        for stored in stored(store, part)? {
            let init = stored.info.init;
            stored.write(store, |name, _, out| {
                match init {
                    Init::Constant(value) => out.fill(value as f32),
                    Init::Drawn => Stream::new(seed, name).fill_normal(0, 0, 0.0, std, out),
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Reads the model's weights and states; stored duplicates must equal their originals.
pub fn load(store: &Store, checkpoint: &CheckpointReader) -> Result<(), WeightsError> {
    for stored in stored(store, Part::Model)? {
        stored.write(store, |name, shape, out| checkpoint.read_f32_into(name, shape, out))?;
        check_duplicates(&stored, checkpoint)?;
    }
    for (name, kept) in store.list() {
        if let Some(info) = kept.weight.as_ref().filter(|info| info.table) {
            store.write(&name, &info.turns(&kept.dims, store.rank()))?;
        }
    }
    Ok(())
}

fn check_duplicates(stored: &Stored, checkpoint: &CheckpointReader) -> Result<(), WeightsError> {
    let (shape, originals) = (stored.shape(), stored.tensors());
    for (copy, position) in stored.own_info().duplicate_names(&stored.dims) {
        if checkpoint.info(&copy).is_none() {
            continue;
        }
        let of = &originals[position].0;
        let bits = |name: &str| -> Result<Vec<u32>, CheckpointError> {
            Ok(checkpoint.read_f32(name, &shape)?.into_iter().map(f32::to_bits).collect())
        };
        if bits(&copy)? != bits(of)? {
            let folder = checkpoint.folder().display().to_string();
            return Err(WeightsError::Copy { folder, copy, of: of.clone() });
        }
    }
    Ok(())
}

/// Reads the optimizer's moments.
pub fn load_optimizer(store: &Store, file: &TensorFile) -> Result<(), WeightsError> {
    for stored in stored(store, Part::Optimizer)? {
        stored.write(store, |name, shape, out| file.read_f32_into(name, shape, out))?;
    }
    Ok(())
}

/// The values of a store, copied so that they can be written while training goes on.
pub struct Snapshot {
    model: Vec<Copied>,
    optimizer: Vec<Copied>,
}

/// A buffer and its values as they lie in memory, little endian as in a checkpoint.
type Copied = (Stored, Vec<u8>);

impl Snapshot {
    /// Of one rank, or of all that call this together: then the first has every value, those that
    /// others hold too, and the others have none. `n_places` ranks along a pipeline hold different
    /// buffers.
    pub fn take(
        store: &Store,
        rank: Option<&Rank>,
        n_places: usize,
    ) -> Result<Snapshot, WeightsError> {
        let own = rank.map_or(0, Rank::rank);
        let each = rank.map_or(1, Rank::n_ranks) / n_places.max(1);
        // The first rank of those that have the same buffers.
        let first = own - own % each.max(1);
        let read = |part| -> Result<Vec<Copied>, WeightsError> {
            let mut all = vec![];
            for stored in stored(store, part)? {
                let holders = stored.info.holders();
                let holders: Vec<usize> = holders.into_iter().map(|r| first + r).collect();
                if !holders.contains(&own) {
                    continue;
                }
                let mut bytes = vec![0; stored.size_bytes()];
                store.read_bytes(&stored.name, 0, &mut bytes)?;
                if let (false, Some(rank)) = (stored.info.cuts.is_empty(), rank) {
                    let meeting = rank.begin("gather", &stored.name, holders);
                    let parts = collective::gather(&meeting, &bytes).map_err(Box::new)?;
                    bytes = joined(&stored.dims, &stored.info.cuts, parts);
                }
                if own == first {
                    all.push((stored, bytes));
                }
            }
            if let (Some(rank), true) = (rank, own == first) {
                for place in 1..n_places {
                    hand_over(rank, place * each, &mut all)?;
                }
            }
            Ok(if own == 0 { all } else { vec![] })
        };
        Ok(Snapshot { model: read(Part::Model)?, optimizer: read(Part::Optimizer)? })
    }

    /// The model's tensors, duplicates too.
    pub fn weights(&self) -> Vec<NewTensor<'_>> {
        self.model.iter().flat_map(|(stored, bytes)| tensors(stored, bytes)).collect()
    }

    pub fn optimizer(&self) -> Vec<NewTensor<'_>> {
        self.optimizer.iter().flat_map(|(stored, bytes)| tensors(stored, bytes)).collect()
    }
}

/// What rank 0 learns of a buffer that another rank has.
#[derive(serde::Serialize, serde::Deserialize)]
struct Told {
    name: String,
    dtype: DType,
    dims: Vec<i64>,
    info: WeightInfo,
}

/// Rank 0 gets the buffers that `of` has and that it lacks: one says what it has, the other answers
/// with the rest.
fn hand_over(rank: &Rank, of: usize, all: &mut Vec<Copied>) -> Result<(), WeightsError> {
    let own = rank.rank();
    if own != 0 && own != of {
        return Ok(());
    }
    let meeting = rank.begin("gather", "weights", vec![0, of]);
    let names: Vec<&String> = all.iter().map(|(stored, _)| &stored.name).collect();
    let text = |value: serde_json::Result<Vec<u8>>| value.unwrap_or_default();
    if own == of {
        let there: Vec<String> = told(&meeting, 0)?;
        let lacks = |(stored, _): &&Copied| !there.contains(&stored.name);
        let rest: Vec<&Copied> = all.iter().filter(lacks).collect();
        let tell = |(stored, _): &&Copied| Told {
            name: stored.name.clone(),
            dtype: stored.dtype,
            dims: stored.whole_dims(),
            info: WeightInfo { cuts: vec![], ..stored.info.clone() },
        };
        let list: Vec<Told> = rest.iter().map(tell).collect();
        tell_to(&meeting, 0, &text(serde_json::to_vec(&list)))?;
        for (_, bytes) in rest {
            meeting.send(0, bytes).map_err(Box::new)?;
        }
        return Ok(());
    }
    tell_to(&meeting, 1, &text(serde_json::to_vec(&names)))?;
    let list: Vec<Told> = told(&meeting, 1)?;
    for Told { name, dtype, dims, info } in list {
        let stored = Stored { name, dtype, dims, info, rank: 0 };
        let mut bytes = vec![0; stored.size_bytes()];
        meeting.recv(1, &mut bytes).map_err(Box::new)?;
        all.push((stored, bytes));
    }
    Ok(())
}

/// Sends bytes after their number.
fn tell_to(meeting: &Meeting<'_>, place: usize, bytes: &[u8]) -> Result<(), WeightsError> {
    meeting.send(place, &(bytes.len() as u64).to_le_bytes()).map_err(Box::new)?;
    Ok(meeting.send(place, bytes).map_err(Box::new)?)
}

/// Receives a list that was sent by `tell_to`.
fn told<T: serde::de::DeserializeOwned>(
    meeting: &Meeting<'_>,
    place: usize,
) -> Result<Vec<T>, WeightsError> {
    let mut len = [0; 8];
    meeting.recv(place, &mut len).map_err(Box::new)?;
    let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
    meeting.recv(place, &mut bytes).map_err(Box::new)?;
    serde_json::from_slice(&bytes).map_err(|e| WeightsError::Told(e.to_string()))
}

/// Buffers of parts, in the order of `WeightInfo::holders`, as one of whole tensors; `dims` are a
/// part's.
fn joined(dims: &[i64], cuts: &[Cut], mut parts: Vec<Vec<u8>>) -> Vec<u8> {
    let mut dims = dims.to_vec();
    // The last cut's places are neighbours.
    for cut in cuts.iter().rev() {
        let n_blocks = dims[..cut.dim as usize].iter().product::<i64>().max(1) as usize;
        let together = parts.chunks(cut.parts as usize).map(|parts| {
            let size = parts.first().map_or(0, |part| part.len() / n_blocks);
            let block = |i: usize| parts.iter().flat_map(move |p| &p[i * size..(i + 1) * size]);
            (0..n_blocks).flat_map(block).copied().collect()
        });
        parts = together.collect();
        dims[cut.dim as usize] *= i64::from(cut.parts);
    }
    parts.into_iter().next().unwrap_or_default()
}

fn tensors<'a>(stored: &Stored, bytes: &'a [u8]) -> Vec<NewTensor<'a>> {
    const { assert!(cfg!(target_endian = "little"), "the file format is little endian") };
    let shape = stored.shape();
    let dtype = published(stored.dtype).expect("others are not among those stored");
    let len = shape.iter().product::<u64>() as usize * stored.dtype.bits() as usize / 8;
    let dims = stored.whole_dims();
    let names = stored.info.stored_names(&dims);
    names
        .chain(stored.info.duplicate_names(&dims))
        .map(|(name, at)| NewTensor::new(&name, dtype, &shape, &bytes[at * len..(at + 1) * len]))
        .collect()
}
