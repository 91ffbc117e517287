//! Loads, stores and atomics: addresses to places, checks, bytes.

use super::atomic::{Atomic, Reduction};
use super::{Next, is_shared};
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Machine, Published};
use crate::memory::{
    GLOBAL_BASE, LOCAL_BASE, MODULE_BASE, PARAM_BASE, SHARED_BASE, SHARED_RANK_SHIFT, SHARED_START,
};
use crate::program::{Access, AddressSpace, Inst, Order, Scope};
use crate::race::Touch;
use crate::warp::{LANES, Warp};

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Shared { cta: usize, offset: u32 },
    Memory { segment: usize, offset: usize },
    Local { offset: usize },
    Param { offset: usize },
}

impl Machine<'_> {
    /// The place of `n_bytes` that an access to `space` at `address` means.
    pub fn place(
        &self,
        cta: usize,
        space: AddressSpace,
        address: u64,
        n_bytes: u64,
    ) -> Result<Place> {
        let wrong = |found: &str| {
            let message = format!("{address:#x} is an address of {found} memory, not of {space:?}");
            Error::new(ErrorKind::OutOfBounds, message)
        };
        match space {
            AddressSpace::SharedCta | AddressSpace::SharedCluster => {
                if address > 0xffff_ffff {
                    return Err(wrong("generic"));
                }
                return self.shared(cta, space, address as u32, n_bytes);
            }
            AddressSpace::Generic if is_shared(address) => {
                let window = (address - SHARED_BASE) as u32;
                return self.shared(cta, AddressSpace::SharedCluster, window, n_bytes);
            }
            _ => {}
        }
        let allows =
            |spaces: &[AddressSpace]| space == AddressSpace::Generic || spaces.contains(&space);
        if (LOCAL_BASE..PARAM_BASE).contains(&address) {
            // Parameters of functions live in the frame too.
            if !allows(&[AddressSpace::Local, AddressSpace::Param]) {
                return Err(wrong("local"));
            }
            let offset = address - LOCAL_BASE;
            return match offset + n_bytes <= self.kernel.local_bytes {
                true => Ok(Place::Local { offset: offset as usize }),
                false => {
                    Err(outside("the thread's frame", offset, n_bytes, self.kernel.local_bytes))
                }
            };
        }
        if (PARAM_BASE..MODULE_BASE).contains(&address) {
            if !allows(&[AddressSpace::Param]) {
                return Err(wrong("parameter"));
            }
            let offset = address - PARAM_BASE;
            return match offset + n_bytes <= self.kernel.params_bytes {
                true => Ok(Place::Param { offset: offset as usize }),
                false => Err(outside("the parameters", offset, n_bytes, self.kernel.params_bytes)),
            };
        }
        if is_shared(address) {
            return Err(wrong("shared"));
        }
        if !allows(&[AddressSpace::Global, AddressSpace::Const]) {
            return Err(wrong("global"));
        }
        let is_module = (MODULE_BASE..GLOBAL_BASE).contains(&address);
        if space == AddressSpace::Const && !is_module {
            return Err(wrong("global"));
        }
        let (segment, offset) = self.memory.locate(address, n_bytes)?;
        Ok(Place::Memory { segment, offset })
    }

    fn shared(&self, cta: usize, space: AddressSpace, address: u32, n_bytes: u64) -> Result<Place> {
        let (there, offset) = self.shared_place(cta, address)?;
        if there != cta && space == AddressSpace::SharedCta {
            let rank = address >> SHARED_RANK_SHIFT;
            let message = format!(
                "{address:#x} is shared memory of CTA {rank} of the cluster; \
                 `.shared::cluster` reaches it, `.shared` does not"
            );
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        let end = u64::from(self.shared_end());
        if offset < SHARED_START || u64::from(offset) + n_bytes > end {
            let from = u64::from(offset).wrapping_sub(u64::from(SHARED_START)) as i64;
            let message = format!(
                "{n_bytes} bytes at offset {from} of shared memory, which has {} bytes",
                end - u64::from(SHARED_START)
            );
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        Ok(Place::Shared { cta: there, offset })
    }

    pub fn load_bytes(&self, warp: &Warp, lane: usize, place: Place, out: &mut [u8]) {
        let n = out.len();
        out.copy_from_slice(match place {
            Place::Shared { cta, offset } => {
                let there = self.ctas[cta].as_ref().expect("a place is in a resident CTA");
                &there.shared[offset as usize..][..n]
            }
            Place::Memory { segment, offset } => {
                &self.memory.segment_ref(segment).bytes[offset..][..n]
            }
            Place::Local { offset } => {
                &warp.local[lane * self.kernel.local_bytes as usize + offset..][..n]
            }
            Place::Param { offset } => &self.params[offset..][..n],
        });
    }

    pub fn store_bytes(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        place: Place,
        bytes: &[u8],
    ) -> Result<()> {
        let n = bytes.len();
        match place {
            Place::Shared { cta, offset } => {
                let there = self.cta(cta);
                let from = offset.saturating_sub(7);
                let live = there.mbarriers.range(from..offset + n as u32).next();
                if let Some((at, _)) = live {
                    let message = format!("a store over the live mbarrier at {at:#x}");
                    return Err(Error::new(ErrorKind::Barrier, message));
                }
                there.shared[offset as usize..][..n].copy_from_slice(bytes);
            }
            Place::Memory { segment, offset } => {
                self.memory.segment(segment).bytes[offset..][..n].copy_from_slice(bytes);
            }
            Place::Local { offset } => {
                let frame = self.kernel.local_bytes as usize;
                warp.local[lane * frame + offset..][..n].copy_from_slice(bytes);
            }
            Place::Param { .. } => {
                let message = "the parameters of a kernel cannot be written";
                return Err(Error::new(ErrorKind::OutOfBounds, message));
            }
        }
        Ok(())
    }

    /// Checks an access against those before it, and remembers it.
    pub fn touch(
        &mut self,
        place: Place,
        n_bytes: usize,
        writes: bool,
        touch: Touch,
    ) -> Result<()> {
        if !self.launch.check_races {
            return Ok(());
        }
        let (shadow, offset) = match place {
            Place::Shared { cta, offset } => (&mut self.cta(cta).shadow, offset as usize),
            Place::Memory { segment, offset } => (&mut self.memory.segment(segment).shadow, offset),
            Place::Local { .. } | Place::Param { .. } => return Ok(()),
        };
        if writes {
            shadow.write(offset, n_bytes, touch)
        } else {
            shadow.read(offset, n_bytes, touch)
        }
    }

    pub(super) fn load(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        access: &Access,
        mask: u32,
    ) -> Result<Next> {
        let addresses = self.fetch(cta, warp, inst.src[0]);
        let element = usize::from(access.bytes);
        let total = element * usize::from(access.n);
        let is_atomic = access.order != Order::Weak;
        let mut polled = None;
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let address = addresses[lane];
            aligned(address, total)?;
            let place = self.place(cta, access.space, address, total as u64)?;
            if is_atomic {
                self.receive(cta, warp, key(place, address), (access.order, access.scope));
            }
            if access.read_only
                && let Place::Memory { segment, offset } = place
                && self.memory.segment(segment).shadow.is_written(offset, total)
            {
                let message = format!("`.nc` reads {address:#x}, which this launch has written");
                return Err(Error::new(ErrorKind::Race, message));
            }
            let (epoch, line) = (warp.epoch(), inst.line);
            let knowledge = &warp.knowledge;
            let touch = Touch { epoch, knowledge, is_async: false, is_atomic, line };
            self.touch(place, total, false, touch)?;
            let mut bytes = [0; 16];
            self.load_bytes(warp, lane, place, &mut bytes[..total]);
            for (n, &dst) in inst.dst.iter().enumerate() {
                let mut word = [0; 8];
                word[..element].copy_from_slice(&bytes[n * element..][..element]);
                let mut value = u64::from_le_bytes(word);
                if access.signed {
                    let unused = 64 - 8 * element as u32;
                    value = ((value << unused) as i64 >> unused) as u64;
                }
                polled = Some((warp.groups[0].pc, value));
                warp.put_lane(dst, lane, value);
            }
        }
        if is_atomic && polled.is_some() {
            let again = warp.polled == polled;
            warp.polled = polled;
            if again {
                return Ok(Next::Yield);
            }
        }
        Ok(Next::Following)
    }

    pub(super) fn store(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        access: &Access,
        mask: u32,
    ) -> Result<Next> {
        let addresses = self.fetch(cta, warp, inst.src[0]);
        let element = usize::from(access.bytes);
        let total = element * usize::from(access.n);
        let is_atomic = access.order != Order::Weak;
        let mut values = [[0u8; 16]; LANES];
        for (n, &src) in inst.src[1..].iter().enumerate() {
            let lanes = self.fetch(cta, warp, src);
            for lane in 0..LANES {
                let word = lanes[lane].to_le_bytes();
                values[lane][n * element..][..element].copy_from_slice(&word[..element]);
            }
        }
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let address = addresses[lane];
            aligned(address, total)?;
            let place = self.place(cta, access.space, address, total as u64)?;
            if access.space == AddressSpace::Const {
                let message = "constant memory cannot be written";
                return Err(Error::new(ErrorKind::OutOfBounds, message));
            }
            let (epoch, line) = (warp.epoch(), inst.line);
            let knowledge = &warp.knowledge;
            let touch = Touch { epoch, knowledge, is_async: false, is_atomic, line };
            self.touch(place, total, true, touch)?;
            self.store_bytes(warp, lane, place, &values[lane][..total])?;
            if is_atomic {
                let strength = (access.order, access.scope);
                self.publish(cta, warp, key(place, address), strength, false);
                self.n_events += 1;
            }
        }
        Ok(Next::Following)
    }

    pub(super) fn atomic(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        atomic: &Atomic,
        mask: u32,
    ) -> Result<Next> {
        let addresses = self.fetch(cta, warp, inst.src[0]);
        let element = usize::from(atomic.bytes);
        let n = usize::from(atomic.n);
        let total = element * n;
        let operands: Vec<_> = inst.src[1..].iter().map(|&s| self.fetch(cta, warp, s)).collect();
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let address = addresses[lane];
            aligned(address, total)?;
            let place = self.place(cta, atomic.space, address, total as u64)?;
            if atomic.returns {
                self.receive(cta, warp, key(place, address), (atomic.order, atomic.scope));
            }
            let (epoch, line) = (warp.epoch(), inst.line);
            let knowledge = &warp.knowledge;
            let touch = Touch { epoch, knowledge, is_async: false, is_atomic: true, line };
            self.touch(place, total, true, touch)?;
            let mut bytes = [0; 16];
            self.load_bytes(warp, lane, place, &mut bytes[..total]);
            for i in 0..n {
                let mut word = [0; 8];
                word[..element].copy_from_slice(&bytes[i * element..][..element]);
                let old = u64::from_le_bytes(word);
                let new = match atomic.reduction {
                    Reduction::Cas => {
                        atomic.reduction.apply(old, operands[1][lane], operands[0][lane])
                    }
                    Reduction::Two(_) => atomic.reduction.apply(old, operands[i][lane], 0),
                };
                bytes[i * element..][..element].copy_from_slice(&new.to_le_bytes()[..element]);
                if atomic.returns {
                    warp.put_lane(inst.dst[i], lane, old);
                }
            }
            self.store_bytes(warp, lane, place, &bytes[..total])?;
            let strength = (atomic.order, atomic.scope);
            self.publish(cta, warp, key(place, address), strength, true);
        }
        self.n_events += u64::from(mask != 0);
        Ok(Next::Following)
    }

    /// Takes over what the last strong writes of a place have published to this CTA.
    fn receive(&mut self, cta: usize, warp: &mut Warp, key: u64, strength: (Order, Scope)) {
        let Some(published) = self.published.get(&key) else { return };
        let (order, scope) = strength;
        let wide = (scope > Scope::Cta).then_some(&published.wide);
        for news in wide.into_iter().chain(published.within.get(&cta)) {
            if order.acquires() {
                warp.knowledge.join(news);
            } else {
                warp.seen.join(news);
            }
        }
    }

    /// `joins`: a read-modify-write continues what was published before it.
    fn publish(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        key: u64,
        strength: (Order, Scope),
        joins: bool,
    ) {
        let (order, scope) = strength;
        let released = order.releases().then(|| warp.release());
        let entry = self.published.entry(key).or_default();
        if !joins {
            *entry = Published::default();
        }
        let within = entry.within.entry(cta).or_default();
        within.join(released.as_ref().unwrap_or(&warp.at_fence_cta));
        if scope > Scope::Cta {
            entry.wide.join(released.as_ref().unwrap_or(&warp.at_fence));
        }
    }
}

/// One key for a place, however its address was written.
fn key(place: Place, address: u64) -> u64 {
    match place {
        Place::Shared { cta, offset } => 1 << 63 | (cta as u64) << 32 | u64::from(offset),
        _ => address,
    }
}

pub fn aligned(address: u64, n_bytes: usize) -> Result<()> {
    if address.is_multiple_of(n_bytes as u64) {
        return Ok(());
    }
    let message = format!("{address:#x} is not a multiple of the {n_bytes} bytes of the access");
    Err(Error::new(ErrorKind::Misaligned, message))
}

fn outside(what: &str, offset: u64, n_bytes: u64, has: u64) -> Error {
    let message = format!("{n_bytes} bytes at offset {offset} of {what}, which has {has} bytes");
    Error::new(ErrorKind::OutOfBounds, message)
}
