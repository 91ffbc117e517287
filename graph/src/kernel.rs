//! Kernels, and the machines their code exists for.

use serde::{Deserialize, Serialize};

/// Position of a kernel in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KernelId(pub u32);

/// Position of an object, ELF or PTX, in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub u32);

/// A function of the kernel ABI, under this symbol name in the object of every variant, or an entry
/// of a PTX module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Unique in the graph.
    pub name: String,
    /// Memory a calling thread provides, 64-byte aligned; the most any variant needs.
    pub scratch_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<KernelVariant>,
    /// Its code for GPUs, an entry of this name in a PTX module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ptx: Option<PtxCode>,
}

/// Code for GPUs. The entry's parameters are the tensor maps, 128 bytes each, then the buffers'
/// addresses, then the scalars, eight bytes each; a block of the launch's grid is a CTA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtxCode {
    /// The text of the module, PTX ISA 8.3 for sm_90a.
    pub object: ObjectId,
    /// Threads of a CTA.
    pub threads: u32,
    /// Shared memory of a CTA beyond what the entry declares itself.
    pub dynamic_shared_bytes: u32,
    /// CTAs of a cluster along the grid, where they share more than the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<u32>,
    /// It waits itself for what the launch before it leaves (`griddepcontrol.wait`), and so may
    /// begin before that is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begins_early: bool,
    /// Sums of codes are meant to be as tensor cores make them, which an interpreter is to imitate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hopper14: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<TensorMap>,
}

/// A tensor that a kernel copies in boxes (TMA). Its sizes come with a launch: they are named by
/// their position among the launch's scalars. Dims are innermost first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMap {
    /// Position among the launch's buffers; the tensor begins with it.
    pub buffer: u32,
    pub element: MapElement,
    /// Elements of each dim.
    pub dims: Vec<u32>,
    /// Bytes from one to the next, of each dim but the first.
    pub strides_bytes: Vec<u32>,
    pub box_dims: Vec<u32>,
    /// Bytes within which 16-byte chunks are permuted in shared memory: 32, 64 or 128.
    pub swizzle_bytes: u32,
}

/// What a tensor map knows of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapElement {
    U8,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelVariant {
    pub cpu: CpuVariant,
    pub object: ObjectId,
}

/// A set of instructions kernels are compiled for; ordered, each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuVariant {
    Avx2,
    Avx512,
    Avx512Bf16,
}

impl CpuVariant {
    pub const ALL: [CpuVariant; 3] = [CpuVariant::Avx2, CpuVariant::Avx512, CpuVariant::Avx512Bf16];

    pub const fn name(self) -> &'static str {
        match self {
            CpuVariant::Avx2 => "avx2",
            CpuVariant::Avx512 => "avx512",
            CpuVariant::Avx512Bf16 => "avx512bf16",
        }
    }

    pub fn from_name(name: &str) -> Option<CpuVariant> {
        CpuVariant::ALL.into_iter().find(|variant| variant.name() == name)
    }

    /// CPU features code of this variant may use, named as LLVM and the kernel's cpuinfo do.
    pub const fn features(self) -> &'static [&'static str] {
        const ALL: &[&str] = &[
            "avx2",
            "fma",
            "f16c",
            "bmi",
            "bmi2",
            "lzcnt",
            "popcnt",
            "movbe", // avx2
            "avx512f",
            "avx512cd",
            "avx512bw",
            "avx512dq",
            "avx512vl", // avx512
            "avx512bf16",
        ];
        match self {
            CpuVariant::Avx2 => ALL.split_at(8).0,
            CpuVariant::Avx512 => ALL.split_at(13).0,
            CpuVariant::Avx512Bf16 => ALL,
        }
    }

    /// The first feature of the variant that this machine lacks.
    pub fn missing_feature(self) -> Option<&'static str> {
        self.features().iter().copied().find(|feature| !has_feature(feature))
    }

    /// The best variant this machine runs.
    pub fn best_here() -> Option<CpuVariant> {
        CpuVariant::ALL.into_iter().rev().find(|variant| variant.missing_feature().is_none())
    }
}

#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    use std::arch::is_x86_feature_detected as detected;
    match name {
        "avx2" => detected!("avx2"),
        "fma" => detected!("fma"),
        "f16c" => detected!("f16c"),
        "bmi" => detected!("bmi1"),
        "bmi2" => detected!("bmi2"),
        "lzcnt" => detected!("lzcnt"),
        "popcnt" => detected!("popcnt"),
        "movbe" => detected!("movbe"),
        "avx512f" => detected!("avx512f"),
        "avx512cd" => detected!("avx512cd"),
        "avx512bw" => detected!("avx512bw"),
        "avx512dq" => detected!("avx512dq"),
        "avx512vl" => detected!("avx512vl"),
        "avx512bf16" => detected!("avx512bf16"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_feature(_name: &str) -> bool {
    false
}

impl Kernel {
    /// The best variant not above `limit`.
    pub fn variant_for(&self, limit: CpuVariant) -> Option<KernelVariant> {
        self.variants
            .iter()
            .copied()
            .filter(|variant| variant.cpu <= limit)
            .max_by_key(|variant| variant.cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_include_the_ones_before() {
        for pair in CpuVariant::ALL.windows(2) {
            assert!(pair[1].features().starts_with(pair[0].features()));
        }
        assert_eq!(CpuVariant::Avx512.features().last(), Some(&"avx512vl"));
        assert_eq!(CpuVariant::Avx2.features().last(), Some(&"movbe"));
    }

    #[test]
    fn the_best_variant_within_the_limit_is_chosen() {
        let variant = |cpu, object| KernelVariant { cpu, object: ObjectId(object) };
        let kernel = Kernel {
            name: "k".into(),
            scratch_bytes: 0,
            ptx: None,
            variants: vec![variant(CpuVariant::Avx2, 0), variant(CpuVariant::Avx512, 1)],
        };
        assert_eq!(kernel.variant_for(CpuVariant::Avx512Bf16).unwrap().object, ObjectId(1));
        assert_eq!(kernel.variant_for(CpuVariant::Avx2).unwrap().object, ObjectId(0));
    }
}
